// The ops on the CPU.
#include <cmath>

#include "frame.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/schedule.h"
#include "tensorflow/tensor.h"

namespace qsgd_tensorflow {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

constexpr uint64_t kMaxWords = INT32_MAX;  // Horovod counts the elements of a gathered tensor in a C int

class Encode : public TensorOp {
  public:
    using TensorOp::TensorOp;

    // Whatever goes wrong, the other ranks wait for a frame: they get one that says what.
    void Compute(OpKernelContext* context) override {
        const Timer timer(*counters_, kNanosecondsEncode);
        const Tensor& gradient = context->input(0);
        OP_REQUIRES(context, context->input(1).NumElements() == kSettings,
                    InvalidArgument("QsgdEncode takes ", kSettings, " settings"));
        qsgd_spec spec = spec_of(gradient, context->input(1), step_of(context->input(2)));
        Tensor frame;
        const uint64_t last = history_.frame_bytes;
        if (context->input(1).flat<int64_t>()(kForgetful)) history_ = {};
        const bool scheduled = context->input(1).flat<int64_t>()(kLevels) == 0;
        if (scheduled) spec.levels = decide(spec, run_of(context->input(3)));
        const std::string problem =
            scheduled && !spec.levels ? kTwoSteps : encode_gradient(context, spec, gradient, frame);
        if (!problem.empty()) OP_REQUIRES_OK(context, error_frame(context, spec, problem, frame));
        count(gradient, frame, last);
        context->set_output(0, frame);
        Tensor* link = nullptr;
        OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({0}), &link));
    }

  protected:
    // Returns what went wrong, or nothing.
    virtual std::string encode_gradient(OpKernelContext* context, qsgd_spec& spec, const Tensor& gradient,
                                        Tensor& frame) {
        return encode(context, spec, gradient.data(), frame);
    }

    std::string encode(OpKernelContext* context, const qsgd_spec& spec, const void* values, Tensor& frame) {
        uint64_t most = 0, bytes = 0;
        int status = qsgd_frame_bytes(&spec, &most);
        if (status != QSGD_OK) return qsgd_status_text(status);
        auto allocated = allocate(context, most, frame);
        if (!allocated.ok()) return std::string(allocated.message());
        const double variance = variance_of(context->input(1));
        status = qsgd_encode_next(&spec, variance, &history_, values, frame.data(), most, threads_, &bytes);
        if (status != QSGD_OK) return qsgd_status_text(status);
        if (bytes != most) {
            const Tensor whole = frame;
            allocated = allocate(context, bytes, frame);
            if (!allocated.ok()) return std::string(allocated.message());
            memcpy(frame.data(), whole.data(), bytes);
        }
        if (bytes / 8 > kMaxWords / size_)
            return "Horovod cannot gather " + std::to_string(bytes) +
                   " bytes of each rank in TensorFlow: use smaller tensors";
        return "";
    }

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

    static double variance_of(const Tensor& settings) {
        double variance;
        memcpy(&variance, &settings.flat<int64_t>()(kVariance), sizeof variance);
        return variance;
    }

    static tensorflow::Status allocate(OpKernelContext* context, uint64_t bytes, Tensor& frame) {
        return context->allocate_temp(tensorflow::DT_INT64, TensorShape({static_cast<int64_t>(bytes / 8)}),
                                      &frame);
    }

    static tensorflow::Status error_frame(OpKernelContext* context, const qsgd_spec& spec,
                                          const std::string& problem, Tensor& frame) {
        uint8_t bytes[QSGD_MAX_ERROR_FRAME];
        uint64_t length = 0;
        const int status = qsgd_error_frame(&spec, problem.c_str(), bytes, sizeof bytes, &length);
        if (status != QSGD_OK) return InvalidArgument(problem);
        TF_RETURN_IF_ERROR(allocate(context, length, frame));
        memcpy(frame.data(), bytes, length);
        return tensorflow::OkStatus();
    }

    qsgd_history history_ = {};

    void count(const Tensor& gradient, const Tensor& frame, uint64_t last) const {
        if (name_ == "#0") counters_->add(kSteps, 1);
        counters_->add(kTensors, 1);
        counters_->add(kCoordinates, static_cast<uint64_t>(gradient.NumElements()));
        counters_->add(kBytesRaw, gradient.tensor_data().size());
        counters_->add(kBytesSent, frame.tensor_data().size());
        counters_->add(kResized, last != 0 && last != frame.tensor_data().size());
    }
};

// Error feedback: the residual, input 4, is a variable that is changed where it lies.
class EncodeResidual : public Encode {
  public:
    using Encode::Encode;

  protected:
    std::string encode_gradient(OpKernelContext* context, qsgd_spec& spec, const Tensor& gradient,
                                Tensor& frame) override {
        tensorflow::core::RefCountPtr<tensorflow::Var> variable;
        const auto found =
            tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, 4), &variable);
        if (!found.ok()) return std::string(found.message());
        const tensorflow::mutex_lock lock(*variable->mu());
        Tensor& residual = *variable->tensor();
        if (residual.dtype() != tensorflow::DT_FLOAT || residual.shape() != gradient.shape())
            return "the residual is no float32 variable of the gradient's shape";
        if (!residual.RefCountIsOne())
            residual = tensorflow::tensor::DeepCopy(residual);  // somebody reads it
        spec.dtype = QSGD_FLOAT32;
        float* const values = residual.flat<float>().data();
        int status = qsgd_add_gradient(gradient.data(), dtype_, spec.count, values, threads_);
        if (status != QSGD_OK) return qsgd_status_text(status);
        const std::string problem = encode(context, spec, values, frame);
        if (!problem.empty()) return problem;
        const qsgd_expectation own = {spec.count, spec.tensor, spec.step, QSGD_FLOAT32, spec.rank};
        status = qsgd_subtract_frame(frame.data(), frame.tensor_data().size(), &own, values, threads_);
        return status == QSGD_OK ? "" : qsgd_status_text(status);
    }
};

// The shape that an input describes.
tensorflow::Status shape_of(const Tensor& described, TensorShape& shape) {
    return tensorflow::tensor::MakeShape(described, &shape);
}

class Token : public TensorOp {
  public:
    using TensorOp::TensorOp;

    void Compute(OpKernelContext* context) override {
        TensorShape shape;
        OP_REQUIRES_OK(context, shape_of(context->input(1), shape));
        Tensor* token = nullptr;
        // A shape that no gradient has, so that ranks of which only one compresses are told by Horovod.
        const TensorShape token_shape({QSGD_TOKEN_LENGTH, 1, 1, 1, 1, 1, 1});
        OP_REQUIRES_OK(context, context->allocate_output(0, token_shape, &token));
        qsgd_token(rank_, signature(static_cast<uint64_t>(shape.num_elements())),
                   token->flat<float>().data());
    }
};

class Accept : public TensorOp {
  public:
    using TensorOp::TensorOp;

    void Compute(OpKernelContext* context) override {
        const Tensor& reduced = context->input(1);
        TensorShape shape;
        OP_REQUIRES_OK(context, shape_of(context->input(3), shape));
        const qsgd_expectation expected = expectation(shape, context->input(2));
        Tensor* factor = nullptr;
        OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &factor));
        const auto length = static_cast<uint64_t>(reduced.NumElements());
        const int status = qsgd_token_factor(reduced.flat<float>().data(), length, size_,
                                             signature(expected.count), factor->flat<float>().data());
        char text[QSGD_MAX_EXPLANATION] = "";
        if (status != QSGD_OK)
            qsgd_explain_token(status, length, size_, what(expected).c_str(), text, sizeof text);
        OP_REQUIRES(context, status == QSGD_OK, InvalidArgument(text));
        context->set_output(0, context->input(0));
    }
};

class DecodeSum : public TensorOp {
  public:
    using TensorOp::TensorOp;

    void Compute(OpKernelContext* context) override {
        const Timer timer(*counters_, kNanosecondsDecode);
        TensorShape shape;
        OP_REQUIRES_OK(context, shape_of(context->input(3), shape));
        const qsgd_expectation expected = expectation(shape, context->input(2));
        const float factor = context->input(1).scalar<float>()();
        Tensor* sum = nullptr;
        OP_REQUIRES_OK(context, context->allocate_output(0, shape, &sum));
        OP_REQUIRES_OK(context, decode(context->input(0), expected, factor, sum->data()));
        OP_REQUIRES(context, tell_schedule(context->input(0), run_of(context->input(5))),
                    InvalidArgument(what(expected), ": ", kTwoSteps));
        counters_->add(kBytesGathered, context->input(0).tensor_data().size());
    }

  private:
    // Of frames that were checked, and carry norms if it goes by them.
    bool tell_schedule(const Tensor& frames, int64_t run) const {
        const auto* first = static_cast<const qsgd::Header*>(frames.data());
        if (!scheduler.arrived || !(first->flags & QSGD_FLAG_SQUARED_NORM)) return true;
        return scheduler.arrived(compressor_, name_.c_str(), run, first, size_) != 0;
    }

    tensorflow::Status decode(const Tensor& frames, const qsgd_expectation& expected, float factor,
                              void* sum) const {
        const auto bytes = static_cast<uint64_t>(frames.tensor_data().size());
        uint32_t bad_frame = 0;
        const int status =
            qsgd_decode_sum(frames.data(), bytes, size_, &expected, factor, sum, threads_, &bad_frame);
        if (status == QSGD_OK) return tensorflow::OkStatus();
        char text[QSGD_MAX_EXPLANATION];
        qsgd_explain(status, frames.data(), bytes, bad_frame, &expected, what(expected).c_str(), text,
                     sizeof text);
        return InvalidArgument(text);
    }
};

REGISTER_KERNEL_BUILDER(Name("QsgdEncode").Device(tensorflow::DEVICE_CPU), Encode);
REGISTER_KERNEL_BUILDER(Name("QsgdEncodeResidual").Device(tensorflow::DEVICE_CPU), EncodeResidual);
REGISTER_KERNEL_BUILDER(Name("QsgdToken").Device(tensorflow::DEVICE_CPU), Token);
REGISTER_KERNEL_BUILDER(Name("QsgdAccept").Device(tensorflow::DEVICE_CPU), Accept);
REGISTER_KERNEL_BUILDER(Name("QsgdDecodeSum").Device(tensorflow::DEVICE_CPU), DecodeSum);

}  // namespace
}  // namespace qsgd_tensorflow
