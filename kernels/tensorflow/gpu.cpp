// The ops on a GPU: gradients and frames in its memory, all else in the host's.
#include "tensorflow/core/framework/device.h"
#include "tensorflow/cuda.h"
#include "tensorflow/encode.h"
#include "tensorflow/token.h"
#include "xla/stream_executor/stream.h"

namespace qsgd_tensorflow {
namespace {

using tensorflow::DataType;
using tensorflow::DT_INT64;
using tensorflow::OkStatus;
using tensorflow::Status;

// The stream that TensorFlow's own kernels are on.
void* stream_of(OpKernelContext* context) {
    return context->op_device_context()->stream()->platform_specific_handle().stream;
}

tensorflow::Device* device_of(OpKernelContext* context) {
    return static_cast<tensorflow::Device*>(context->device());
}

// Both wait for what is on the stream.
Status to_host(OpKernelContext* context, const Tensor& tensor, Tensor* copy) {
    TF_RETURN_IF_ERROR(allocate_on_host(context, tensor.dtype(), tensor.shape(), copy));
    return context->op_device_context()->CopyDeviceTensorToCPUSync(&tensor, "qsgd", device_of(context), copy);
}

Status to_device(OpKernelContext* context, const Tensor& tensor, Tensor* copy) {
    return context->op_device_context()->CopyCPUTensorToDeviceSync(&tensor, device_of(context), copy);
}

Status words(OpKernelContext* context, uint64_t bytes, Tensor* memory) {
    return context->allocate_temp(DT_INT64, TensorShape({static_cast<int64_t>((bytes + 7) / 8)}), memory);
}

std::string refusal(int status) {
    const std::string text = qsgd_status_text(status);
    return status == QSGD_CUDA_ERROR ? text + ": " + cuda_kernels().error() : text;
}

// Packed and ternary codes are made on the GPU, and all others on the CPU, for which the host waits.
class EncodeOnGpu : public Encode {
  public:
    using Encode::Encode;

  protected:
    std::string encode_gradient(OpKernelContext* context, qsgd_spec& spec, const Tensor& gradient,
                                Tensor& frame) override {
        const bool fixed = spec.codec == QSGD_CODEC_PACKED || spec.codec == QSGD_CODEC_TERNARY;
        const bool here =
            fixed && !(spec.flags & QSGD_FLAG_SUBTRACTIVE) && variance_of(context->input(1)) == 0;
        if (here) return encode_here(context, spec, gradient, frame);
        Tensor values;
        const Status copied = to_host(context, gradient, &values);
        if (!copied.ok()) return std::string(copied.message());
        const std::string problem = encode(context, spec, values.data(), frame);
        if (!problem.empty()) return problem;
        const Status delivered = deliver(context, frame);
        return delivered.ok() ? "" : std::string(delivered.message());
    }

    Status deliver(OpKernelContext* context, Tensor& frame) const override {
        const Tensor made = frame;
        TF_RETURN_IF_ERROR(words(context, made.tensor_data().size(), &frame));
        return to_device(context, made, &frame);
    }

  private:
    std::string encode_here(OpKernelContext* context, const qsgd_spec& spec, const Tensor& gradient,
                            Tensor& frame) {
        uint64_t bytes = 0, room = 0;
        int status = qsgd_frame_bytes(&spec, &bytes);
        if (status == QSGD_OK) status = cuda_kernels().encode_scratch(&spec, &room);
        if (status != QSGD_OK) return refusal(status);
        const std::string problem = too_long(bytes);
        if (!problem.empty()) return problem;
        Tensor scratch;
        Status allocated = words(context, bytes, &frame);
        if (allocated.ok()) allocated = words(context, room, &scratch);
        if (!allocated.ok()) return std::string(allocated.message());
        status = cuda_kernels().encode(&spec, gradient.data(), frame.data(), bytes, nullptr, scratch.data(),
                                       room, stream_of(context));
        if (status != QSGD_OK) return refusal(status);
        history_.frame_bytes = bytes;
        return "";
    }
};

// Ends once the GPU has summed the frames and found them right. Where it has not, they may be of a codec that
// it does not know: the CPU sums them, or says what is wrong.
class DecodeSumOnGpu : public AsyncTensorOp {
  public:
    using AsyncTensorOp::AsyncTensorOp;

    void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
        const Timer timer(*counters_, kNanosecondsDecode);
        TensorShape shape;
        OP_REQUIRES_OK_ASYNC(context, shape_of(context->input(3), shape), done);
        const qsgd_expectation expected = expectation(shape, context->input(2));
        Tensor* sum = nullptr;
        OP_REQUIRES_OK_ASYNC(context, context->allocate_output(0, shape, &sum), done);
        counters_->add(kBytesGathered, context->input(0).tensor_data().size());
        const auto verdict = std::make_shared<Verdict>();
        OP_REQUIRES_OK_ASYNC(context, enqueue(context, expected, sum->data(), *verdict), done);
        const auto read = [this, context, expected, sum, verdict, done](const Status& copied) {
            OP_REQUIRES_OK_ASYNC(context, copied, done);
            const bool summed = verdict->on_host.flat<int32_t>()(0) == QSGD_OK;
            if (summed && !schedule_of(compressor_).needs_frames) return done();
            // Not in this thread, which copies for others, too.
            context->device()->tensorflow_cpu_worker_threads()->workers->Schedule([this, context, expected,
                                                                                   summed, sum, done] {
                OP_REQUIRES_OK_ASYNC(context, read_frames(context, expected, summed ? nullptr : sum), done);
                done();
            });
        };
        context->op_device_context()->CopyDeviceTensorToCPU(&verdict->on_device, "qsgd", device_of(context),
                                                            &verdict->on_host, read);
    }

  private:
    struct Verdict {
        Tensor on_device, on_host, scratch;
    };

    static float factor(OpKernelContext* context) { return context->input(1).scalar<float>()(); }

    Status enqueue(OpKernelContext* context, const qsgd_expectation& expected, void* sum,
                   Verdict& verdict) const {
        const Tensor& frames = context->input(0);
        constexpr DataType kType = tensorflow::DT_INT32;
        const TensorShape shape({sizeof(qsgd_verdict) / sizeof(int32_t)});
        TF_RETURN_IF_ERROR(context->allocate_temp(kType, shape, &verdict.on_device));
        TF_RETURN_IF_ERROR(allocate_on_host(context, kType, shape, &verdict.on_host));
        uint64_t room = 0;
        int status = cuda_kernels().decode_scratch(size_, &room);
        if (status != QSGD_OK) return InvalidArgument(refusal(status));
        TF_RETURN_IF_ERROR(words(context, room, &verdict.scratch));
        status = cuda_kernels().decode_sum(frames.data(), frames.tensor_data().size(), size_, &expected,
                                           factor(context), nullptr, sum,
                                           static_cast<qsgd_verdict*>(verdict.on_device.data()),
                                           verdict.scratch.data(), room, stream_of(context));
        return status == QSGD_OK ? OkStatus() : InvalidArgument(what(expected), ": ", refusal(status));
    }

    // On the CPU: for a schedule, if there is one, and to sum them, if that is still to be done.
    Status read_frames(OpKernelContext* context, const qsgd_expectation& expected, Tensor* sum) const {
        Tensor frames;
        TF_RETURN_IF_ERROR(to_host(context, context->input(0), &frames));
        if (sum) TF_RETURN_IF_ERROR(sum_on_cpu(context, frames, expected, sum));
        return tell_schedule(frames, expected, run_of(context->input(5)));
    }

    Status sum_on_cpu(OpKernelContext* context, const Tensor& frames, const qsgd_expectation& expected,
                      Tensor* sum) const {
        Tensor result;
        TF_RETURN_IF_ERROR(allocate_on_host(context, sum->dtype(), sum->shape(), &result));
        TF_RETURN_IF_ERROR(decode_sum(frames, expected, factor(context), result.data()));
        return to_device(context, result, sum);
    }
};

REGISTER_KERNEL_BUILDER(Name("QsgdEncode")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("settings")
                            .HostMemory("step")
                            .HostMemory("run"),
                        EncodeOnGpu);
REGISTER_KERNEL_BUILDER(
    Name("QsgdToken").Device(tensorflow::DEVICE_GPU).HostMemory("shape").HostMemory("token"), Token);
REGISTER_KERNEL_BUILDER(Name("QsgdAccept")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("reduced")
                            .HostMemory("step")
                            .HostMemory("shape")
                            .HostMemory("factor"),
                        Accept);
REGISTER_KERNEL_BUILDER(Name("QsgdDecodeSum")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("factor")
                            .HostMemory("step")
                            .HostMemory("shape")
                            .HostMemory("run"),
                        DecodeSumOnGpu);

}  // namespace
}  // namespace qsgd_tensorflow
