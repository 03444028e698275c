// The TensorFlow ops: what goes in and comes out, whatever device they run on. hvd_qsgd/tensorflow.py says
// how they work together.
#include "qsgd.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

namespace {

tensorflow::Status decoded_shape(InferenceContext* c) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(3, &shape));
    c->set_output(0, shape);
    return tensorflow::OkStatus();
}

tensorflow::Status token_shape(InferenceContext* c) {
    c->set_output(0, c->MakeShape({QSGD_TOKEN_LENGTH, 1, 1, 1, 1, 1, 1}));
    return tensorflow::OkStatus();
}

tensorflow::Status encoded_shapes(InferenceContext* c) {
    c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
    c->set_output(1, c->Vector(0));
    return tensorflow::OkStatus();
}

tensorflow::Status accepted_shapes(InferenceContext* c) {
    c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
    c->set_output(1, c->Scalar());
    return tensorflow::OkStatus();
}

}  // namespace

// What all of them must know of the tensor: `tensor` is its id on the wire, `operation` names the collective
// that carries its frames, `tensor_name` is for messages.
#define QSGD_TENSOR_ATTRS              \
    Attr("T: {float, half, bfloat16}") \
        .Attr("tensor: int")           \
        .Attr("operation: string")     \
        .Attr("tensor_name: string")   \
        .Attr("rank: int")             \
        .Attr("size: int")             \
        .Attr("threads: int")          \
        .Attr("compressor: int")

REGISTER_OP("QsgdEncode")
    .Input("gradient: T")
    .Input("settings: int64")  // see Settings in tensor.h
    .Input("step: int64")
    .Input("run: int64")  // of the graph: the same for all gradients of a step
    .Output("frame: int64")
    .Output("link: float")  // of no elements: what differentiation follows from the sum back to the gradient
    .QSGD_TENSOR_ATTRS.SetShapeFn(encoded_shapes)
    .Doc("One frame of the gradient, as 64-bit words; an error frame if it cannot be encoded.");

REGISTER_OP("QsgdEncodeResidual")
    .Input("gradient: T")
    .Input("settings: int64")
    .Input("step: int64")
    .Input("run: int64")
    .Input("residual: resource")  // a float variable of the gradient's shape
    .Output("frame: int64")
    .Output("link: float")
    .QSGD_TENSOR_ATTRS.SetShapeFn(encoded_shapes)
    .SetIsStateful()
    .Doc(
        "The same of gradient and residual together, as float32; what the frame leaves out is the new "
        "residual.");

REGISTER_OP("QsgdToken")
    .Input("frame: int64")  // so that no token runs ahead of its gradient, or is reduced once as a constant
    .Input("shape: int64")
    .Output("token: float")
    .QSGD_TENSOR_ATTRS.SetShapeFn(token_shape)
    .Doc("What Horovod is to reduce in place of the gradient.");

REGISTER_OP("QsgdAccept")
    .Input("frame: int64")
    .Input("reduced: float")
    .Input("step: int64")
    .Input("shape: int64")
    .Output("accepted: int64")
    .Output("factor: float")
    .QSGD_TENSOR_ATTRS.SetShapeFn(accepted_shapes)
    .Doc("This rank's frame, once the reduced token was found right, and the factor that the token tells.");

REGISTER_OP("QsgdDecodeSum")
    .Input("frames: int64")
    .Input("factor: float")
    .Input("step: int64")
    .Input("shape: int64")
    .Input("link: float")
    .Input("run: int64")
    .Input("settings: int64")  // that this rank's frame was made with
    .Output("sum: T")
    .QSGD_TENSOR_ATTRS.SetShapeFn(decoded_shape)
    .SetIsStateful()
    .Doc("The sum of all ranks' frames, times the factor.");
