// The token's ops, whose work is the host's on any device: a frame passes through untouched.
#pragma once

#include "tensorflow/tensor.h"

namespace qsgd_tensorflow {

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

}  // namespace qsgd_tensorflow
