// Encoding on a GPU.
#include "tensorflow/cuda.h"

#ifdef QSGD_TENSORFLOW_GPU
#include "tensorflow/encode.h"
#include "tensorflow/gpu.h"

namespace qsgd_tensorflow {
namespace {

class EncodeOnGpu : public Encode {
  public:
    using Encode::Encode;

  protected:
    void start(const std::shared_ptr<Making>& making) override {
        const uint8_t codec = making->spec.codec;
        const bool here =
            !(making->spec.flags & QSGD_FLAG_SUBTRACTIVE) && variance_of(making->settings()) == 0;
        if (here && qsgd::rounds_to_fixed_width(codec)) return conclude(*making, encode_fixed(*making));
        if (here && qsgd::has_variable_width(codec)) return encode_variable(making);
        encode_on_cpu(making);
    }

    Status deliver(OpKernelContext* context, Tensor& frame) const override {
        const Tensor made = frame;
        TF_RETURN_IF_ERROR(words(context, made.tensor_data().size(), &frame));
        return to_device(context, made, &frame);
    }

  private:
    std::string encode_fixed(Making& making) {
        uint64_t bytes = 0;
        const int status = qsgd_frame_bytes(&making.spec, &bytes);
        if (status != QSGD_OK) return refusal(status);
        Tensor scratch;
        std::string problem = take_frame(making, bytes);
        if (problem.empty()) problem = take_scratch(making, scratch);
        if (!problem.empty()) return problem;
        return refused(cuda_kernels().encode(&making.spec, making.gradient().data(), making.frame.data(),
                                             bytes, nullptr, scratch.data(), scratch.tensor_data().size(),
                                             stream_of(making.context)));
    }

    // Only the GPU can tell how long the frame is, and Horovod must know: when the length is here, memory for
    // the frame is taken, and the rest of the work put on the stream.
    void encode_variable(const std::shared_ptr<Making>& making) {
        Tensor length, scratch;
        const std::string problem = begin(*making, length, scratch);
        if (!problem.empty()) return conclude(*making, problem);
        go_on(making, length, [this, making, scratch](const Tensor& found) {
            return end(*making, static_cast<uint64_t>(found.flat<int64_t>()(0)), scratch);
        });
    }

    std::string begin(Making& making, Tensor& length, Tensor& scratch) const {
        std::string problem = take_scratch(making, scratch);
        if (problem.empty()) problem = problem_of(words(making.context, sizeof(uint64_t), &length));
        if (!problem.empty()) return problem;
        return refused(cuda_kernels().encode_begin(
            &making.spec, making.gradient().data(), nullptr, scratch.data(), scratch.tensor_data().size(),
            static_cast<uint64_t*>(length.data()), stream_of(making.context)));
    }

    std::string end(Making& making, uint64_t length, const Tensor& scratch) {
        const auto active = activated(making.context);
        uint64_t most = 0;
        const int status = qsgd_frame_bytes(&making.spec, &most);
        if (status != QSGD_OK) return refusal(status);
        const uint64_t padded = qsgd_padded_bytes(length, history_.frame_bytes);  // as qsgd_encode_next does
        const uint64_t bytes = std::min(padded, most / 16 * 16);
        const std::string problem = take_frame(making, bytes);
        if (!problem.empty()) return problem;
        return refused(cuda_kernels().encode_end(&making.spec, making.frame.data(), bytes, scratch.data(),
                                                 scratch.tensor_data().size(), stream_of(making.context)));
    }

    // All that there are no kernels for.
    void encode_on_cpu(const std::shared_ptr<Making>& making) {
        go_on(making, making->gradient(), [this, making](const Tensor& copy) {
            const std::string problem = encode(*making, copy.data());
            return problem.empty() ? problem_of(deliver(making->context, making->frame)) : problem;
        });
    }

    // Concludes with what `next` says to a copy of `tensor` in the host's memory. No thread waits for that.
    template <class Next>
    void go_on(const std::shared_ptr<Making>& making, const Tensor& tensor, const Next& next) {
        to_host(making->context, tensor, [this, making, next](const Status& copied, const Tensor& copy) {
            elsewhere(making->context, [this, making, next, copied, copy] {
                std::string problem = problem_of(copied);
                if (problem.empty()) {
                    const Timer timer(*counters_, kNanosecondsEncode);
                    problem = next(copy);
                }
                conclude(*making, problem);
            });
        });
    }

    // Remembers what qsgd_encode_next does, which may have to make the next frame.
    std::string take_frame(Making& making, uint64_t bytes) {
        history_.frames = 0;
        history_.codec = making.spec.codec;
        history_.frame_bytes = bytes;
        const std::string problem = too_long(bytes);
        return problem.empty() ? problem_of(words(making.context, bytes, &making.frame)) : problem;
    }

    static std::string take_scratch(const Making& making, Tensor& scratch) {
        uint64_t bytes = 0;
        const int status = cuda_kernels().encode_scratch(&making.spec, &bytes);
        return status == QSGD_OK ? problem_of(words(making.context, bytes, &scratch)) : refusal(status);
    }

    static std::string refused(int status) { return status == QSGD_OK ? "" : refusal(status); }
};

REGISTER_KERNEL_BUILDER(Name("QsgdEncode")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("settings")
                            .HostMemory("step")
                            .HostMemory("run"),
                        EncodeOnGpu);

}  // namespace
}  // namespace qsgd_tensorflow
#endif
