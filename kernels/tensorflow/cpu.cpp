// The ops on the CPU.
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/encode.h"
#include "tensorflow/token.h"

namespace qsgd_tensorflow {
namespace {

class EncodeOnCpu : public Encode {
  public:
    using Encode::Encode;

    AsyncOpKernel* AsAsync() override { return nullptr; }  // it is not: all is done on return

  protected:
    void start(const std::shared_ptr<Making>& making) override {
        conclude(*making, encode_gradient(*making));
    }

    // Returns what went wrong, or nothing.
    virtual std::string encode_gradient(Making& making) { return encode(making, making.gradient().data()); }
};

// Error feedback: the residual, input 4, is a variable that is changed where it lies.
class EncodeResidual : public EncodeOnCpu {
  public:
    using EncodeOnCpu::EncodeOnCpu;

  protected:
    std::string encode_gradient(Making& making) override {
        tensorflow::core::RefCountPtr<tensorflow::Var> variable;
        const auto handle = tensorflow::HandleFromInput(making.context, 4);
        const auto found = tensorflow::LookupResource(making.context, handle, &variable);
        if (!found.ok()) return std::string(found.message());
        const tensorflow::mutex_lock lock(*variable->mu());
        Tensor& residual = *variable->tensor();
        if (residual.dtype() != tensorflow::DT_FLOAT || residual.shape() != making.gradient().shape())
            return "the residual is no float32 variable of the gradient's shape";
        if (!residual.RefCountIsOne())
            residual = tensorflow::tensor::DeepCopy(residual);  // somebody reads it
        qsgd_spec& spec = making.spec;
        spec.dtype = QSGD_FLOAT32;
        float* const values = residual.flat<float>().data();
        int status = qsgd_add_gradient(making.gradient().data(), dtype_, spec.count, values, threads_);
        if (status != QSGD_OK) return qsgd_status_text(status);
        const std::string problem = encode(making, values);
        if (!problem.empty()) return problem;
        const qsgd_expectation own = {spec.count, spec.tensor, spec.step, QSGD_FLOAT32, spec.rank};
        status = qsgd_subtract_frame(making.frame.data(), making.frame.tensor_data().size(), &own, values,
                                     threads_);
        return status == QSGD_OK ? "" : qsgd_status_text(status);
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
        OP_REQUIRES_OK(context, decode_sum(context->input(0), expected, factor, sum->data()));
        OP_REQUIRES_OK(context, tell_schedule(context->input(0), expected, run_of(context->input(5))));
        counters_->add(kBytesGathered, context->input(0).tensor_data().size());
    }
};

REGISTER_KERNEL_BUILDER(Name("QsgdEncode").Device(tensorflow::DEVICE_CPU), EncodeOnCpu);
REGISTER_KERNEL_BUILDER(Name("QsgdEncodeResidual").Device(tensorflow::DEVICE_CPU), EncodeResidual);
REGISTER_KERNEL_BUILDER(Name("QsgdToken").Device(tensorflow::DEVICE_CPU), Token);
REGISTER_KERNEL_BUILDER(Name("QsgdAccept").Device(tensorflow::DEVICE_CPU), Accept);
REGISTER_KERNEL_BUILDER(Name("QsgdDecodeSum").Device(tensorflow::DEVICE_CPU), DecodeSum);

}  // namespace
}  // namespace qsgd_tensorflow
