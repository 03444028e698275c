// Encoding a gradient, on any device.
#pragma once

#include <cmath>

#include "tensorflow/schedule.h"
#include "tensorflow/tensor.h"

namespace qsgd_tensorflow {

constexpr uint64_t kMaxWords = INT32_MAX;  // Horovod counts the elements of a gathered tensor in a C int

class Encode : public AsyncTensorOp {
  public:
    using AsyncTensorOp::AsyncTensorOp;

    // Whatever goes wrong, the other ranks wait for a frame: they get one that says what.
    void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
        const Timer timer(*counters_, kNanosecondsEncode);
        const Tensor& settings = context->input(1);
        OP_REQUIRES_ASYNC(context, settings.NumElements() == kSettings,
                          InvalidArgument("QsgdEncode takes ", kSettings, " settings"), done);
        const qsgd_spec spec = spec_of(context->input(0), settings, step_of(context->input(2)));
        const auto making =
            std::make_shared<Making>(Making{context, std::move(done), spec, history_.frame_bytes, {}});
        if (settings.flat<int64_t>()(kForgetful)) history_ = {};
        const bool scheduled = settings.flat<int64_t>()(kLevels) == 0;
        if (scheduled) making->spec.levels = decide(spec, run_of(context->input(3)));
        if (making->spec.levels || !scheduled) return start(making);
        conclude(*making, kTwoSteps);
    }

  protected:
    // A frame that is being made.
    struct Making {
        OpKernelContext* context;
        DoneCallback done;
        qsgd_spec spec;
        uint64_t last;  // bytes of the tensor's frame before it
        Tensor frame;   // where the op's outputs lie

        const Tensor& gradient() const { return context->input(0); }
        const Tensor& settings() const { return context->input(1); }
    };

    // Sees to it that the frame is made, and then calls `conclude`.
    virtual void start(const std::shared_ptr<Making>& making) = 0;

    // The frame is there, or has a problem. No code of the op may run after this.
    void conclude(Making& making, const std::string& problem) {
        OpKernelContext* const context = making.context;
        if (!problem.empty()) OP_REQUIRES_OK_ASYNC(context, error_frame(making, problem), making.done);
        count(making);
        context->set_output(0, making.frame);
        Tensor* link = nullptr;
        OP_REQUIRES_OK_ASYNC(context, context->allocate_output(1, TensorShape({0}), &link), making.done);
        making.done();
    }

    // Puts a frame, which lies in the host's memory, where the op's outputs lie.
    virtual tensorflow::Status deliver(OpKernelContext*, Tensor&) const { return tensorflow::OkStatus(); }

    // A frame in the host's memory, of values there.
    std::string encode(Making& making, const void* values) {
        Tensor& frame = making.frame;
        uint64_t most = 0, bytes = 0;
        int status = qsgd_frame_bytes(&making.spec, &most);
        if (status != QSGD_OK) return qsgd_status_text(status);
        auto allocated = allocate(making.context, most, frame);
        if (!allocated.ok()) return std::string(allocated.message());
        status = qsgd_encode_next(&making.spec, variance_of(making.settings()), &history_, values,
                                  frame.data(), most, threads_, &bytes);
        if (status != QSGD_OK) return qsgd_status_text(status);
        if (bytes != most) {
            const Tensor whole = frame;
            allocated = allocate(making.context, bytes, frame);
            if (!allocated.ok()) return std::string(allocated.message());
            memcpy(frame.data(), whole.data(), bytes);
        }
        return too_long(bytes);
    }

    std::string too_long(uint64_t bytes) const {
        if (bytes / 8 <= kMaxWords / size_) return "";
        return "Horovod cannot gather " + std::to_string(bytes) +
               " bytes of each rank in TensorFlow: use smaller tensors";
    }

    static double variance_of(const Tensor& settings) {
        double variance;
        memcpy(&variance, &settings.flat<int64_t>()(kVariance), sizeof variance);
        return variance;
    }

    qsgd_history history_ = {};

  private:
    qsgd_spec spec_of(const Tensor& gradient, const Tensor& settings, uint32_t step) const {
        const auto set = settings.flat<int64_t>();
        const auto elements = static_cast<uint64_t>(gradient.NumElements());
        qsgd_spec spec = {};
        spec.count = elements;
        spec.bucket_size =
            set(kBucketSize) ? static_cast<uint64_t>(set(kBucketSize)) : std::max(elements, uint64_t{1});
        spec.seed = static_cast<uint64_t>(set(kSeed));
        spec.levels = levels_of(set(kLevels), std::min(spec.bucket_size, elements));
        spec.rank = rank_;
        spec.tensor = tensor_;
        spec.step = step;
        spec.codec = narrow<uint8_t>(set(kCodec));
        spec.norm = narrow<uint8_t>(set(kNorm));
        spec.dtype = static_cast<uint8_t>(dtype_);
        spec.flags = narrow<uint8_t>(set(kFlags));
        const auto sizes = gradient.shape().dim_sizes();
        const std::vector<uint64_t> shape(sizes.begin(), sizes.end());
        spec.columns = qsgd_columns(shape.data(), static_cast<uint32_t>(shape.size()));
        return spec;
    }

    uint32_t decide(const qsgd_spec& spec, int64_t run) const {
        return scheduler.decide ? scheduler.decide(compressor_, name_.c_str(), spec.count, run) : 0;
    }

    static uint32_t levels_of(int64_t setting, uint64_t elements) {
        if (setting >= 0) return narrow<uint32_t>(setting);
        const auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(elements)));
        return narrow<uint32_t>(std::max(int64_t{1}, std::min(root, -setting)));
    }

    static tensorflow::Status allocate(OpKernelContext* context, uint64_t bytes, Tensor& frame) {
        return allocate_on_host(context, tensorflow::DT_INT64, TensorShape({static_cast<int64_t>(bytes / 8)}),
                                &frame);
    }

    tensorflow::Status error_frame(Making& making, const std::string& problem) const {
        uint8_t bytes[QSGD_MAX_ERROR_FRAME];
        uint64_t length = 0;
        const int status = qsgd_error_frame(&making.spec, problem.c_str(), bytes, sizeof bytes, &length);
        if (status != QSGD_OK) return InvalidArgument(problem);
        TF_RETURN_IF_ERROR(allocate(making.context, length, making.frame));
        memcpy(making.frame.data(), bytes, length);
        return deliver(making.context, making.frame);
    }

    void count(const Making& making) const {
        const uint64_t sent = making.frame.tensor_data().size();
        if (name_ == "#0") counters_->add(kSteps, 1);
        counters_->add(kTensors, 1);
        counters_->add(kCoordinates, static_cast<uint64_t>(making.gradient().NumElements()));
        counters_->add(kBytesRaw, making.gradient().tensor_data().size());
        counters_->add(kBytesSent, sent);
        counters_->add(kResized, making.last != 0 && making.last != sent);
    }
};

}  // namespace qsgd_tensorflow
