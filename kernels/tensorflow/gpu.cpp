// The other ops on a GPU.
#include "tensorflow/cuda.h"

#ifdef QSGD_TENSORFLOW_GPU
#include "tensorflow/gpu.h"
#include "tensorflow/token.h"

namespace qsgd_tensorflow {
namespace {

using tensorflow::OkStatus;

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
        Tensor verdict;
        OP_REQUIRES_OK_ASYNC(context, enqueue(context, expected, sum->data(), verdict), done);
        to_host(context, verdict,
                [this, context, expected, sum, done](const Status& copied, const Tensor& found) {
                    OP_REQUIRES_OK_ASYNC(context, copied, done);
                    const bool summed = found.flat<int32_t>()(0) == QSGD_OK;
                    if (summed && !schedule_of(compressor_).needs_frames) return done();
                    elsewhere(context, [this, context, expected, summed, sum, done] {
                        read_frames(context, expected, summed ? nullptr : sum, done);
                    });
                });
    }

  private:
    static float factor(OpKernelContext* context) { return context->input(1).scalar<float>()(); }

    Status enqueue(OpKernelContext* context, const qsgd_expectation& expected, void* sum,
                   Tensor& verdict) const {
        const Tensor& frames = context->input(0);
        const TensorShape shape({sizeof(qsgd_verdict) / sizeof(int32_t)});
        TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_INT32, shape, &verdict));
        uint64_t room = 0;
        int status = scratch_bytes(context->input(6), expected.count, room);
        if (status != QSGD_OK) return InvalidArgument(what(expected), ": ", refusal(status));
        Tensor scratch;
        TF_RETURN_IF_ERROR(words(context, room, &scratch));
        status = cuda_kernels().decode_sum(
            frames.data(), frames.tensor_data().size(), size_, &expected, factor(context), nullptr, sum,
            static_cast<qsgd_verdict*>(verdict.data()), scratch.data(), room, stream_of(context));
        return status == QSGD_OK ? OkStatus() : InvalidArgument(what(expected), ": ", refusal(status));
    }

    // The other ranks' frames are taken to be of this one's codec: with fixed widths less memory will do.
    int scratch_bytes(const Tensor& settings, uint64_t count, uint64_t& bytes) const {
        const auto codec = narrow<uint8_t>(settings.flat<int64_t>()(kCodec));
        return codec == QSGD_CODEC_AUTO || qsgd::has_variable_width(codec)
                   ? cuda_kernels().decode_scratch_variable(count, size_, &bytes)
                   : cuda_kernels().decode_scratch(size_, &bytes);
    }

    // On the CPU: for a schedule, if there is one, and to sum them, if that is still to be done.
    void read_frames(OpKernelContext* context, const qsgd_expectation& expected, Tensor* sum,
                     const DoneCallback& done) const {
        to_host(context, context->input(0), [=](const Status& copied, const Tensor& frames) {
            OP_REQUIRES_OK_ASYNC(context, copied, done);
            elsewhere(context, [=] {
                if (sum) OP_REQUIRES_OK_ASYNC(context, sum_on_cpu(context, frames, expected, sum), done);
                OP_REQUIRES_OK_ASYNC(context, tell_schedule(frames, expected, run_of(context->input(5))),
                                     done);
                done();
            });
        });
    }

    Status sum_on_cpu(OpKernelContext* context, const Tensor& frames, const qsgd_expectation& expected,
                      Tensor* sum) const {
        Tensor result;
        TF_RETURN_IF_ERROR(allocate_on_host(context, sum->dtype(), sum->shape(), &result));
        TF_RETURN_IF_ERROR(decode_sum(frames, expected, factor(context), result.data()));
        return to_device(context, result, sum);
    }
};

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
                            .HostMemory("run")
                            .HostMemory("settings"),
                        DecodeSumOnGpu);

}  // namespace
}  // namespace qsgd_tensorflow
#endif
