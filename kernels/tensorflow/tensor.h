// What every op knows of its tensor, on any device, and the errors that they report.
#pragma once

#include <string>

#include "frame.h"
#include "qsgd.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor_util.h"
#include "tensorflow/counters.h"
#include "tensorflow/schedule.h"

namespace qsgd_tensorflow {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

// The elements of QsgdEncode's input `settings`.
// Levels of 0: a schedule decides. Below 0: the square root of a bucket's elements, but no more than that
// many. Bucket size 0: the whole tensor. The variance's bits as those of a float64; 0: the levels are given.
// Forgetful: lengths and codecs of frames do not depend on older frames.
enum Settings { kLevels, kBucketSize, kNorm, kCodec, kVariance, kFlags, kForgetful, kSeed, kSettings };

// `value`, or 0, which no setting may be, if it does not fit.
template <class To>
To narrow(int64_t value) {
    return static_cast<int64_t>(static_cast<To>(value)) == value ? static_cast<To>(value) : To{0};
}

// The shape that an input describes.
inline tensorflow::Status shape_of(const Tensor& described, TensorShape& shape) {
    return tensorflow::tensor::MakeShape(described, &shape);
}

// In the host's memory, whatever device the op runs on.
inline tensorflow::Status allocate_on_host(OpKernelContext* context, tensorflow::DataType type,
                                           const TensorShape& shape, Tensor* tensor) {
    tensorflow::AllocatorAttributes where;
    where.set_on_host(true);
    where.set_gpu_compatible(true);
    return context->allocate_temp(type, shape, tensor, where);
}

// The ops' attributes, and what they do alike. `Kernel` is TensorFlow's class: synchronous or not.
template <class Kernel>
class TensorKernel : public Kernel {
  public:
    explicit TensorKernel(tensorflow::OpKernelConstruction* construction) : Kernel(construction) {
        OP_REQUIRES(
            construction, qsgd_abi_version() == QSGD_ABI_VERSION,
            tensorflow::errors::FailedPrecondition(
                "the TensorFlow ops of hvd_qsgd were built for another kernel library: build them again "
                "(`make tensorflow`)"));
        tensorflow::DataType type;
        int64_t tensor, rank, size, threads;
        OP_REQUIRES_OK(construction, construction->GetAttr("T", &type));
        OP_REQUIRES_OK(construction, construction->GetAttr("tensor", &tensor));
        OP_REQUIRES_OK(construction, construction->GetAttr("operation", &operation_));
        OP_REQUIRES_OK(construction, construction->GetAttr("tensor_name", &name_));
        OP_REQUIRES_OK(construction, construction->GetAttr("rank", &rank));
        OP_REQUIRES_OK(construction, construction->GetAttr("size", &size));
        OP_REQUIRES_OK(construction, construction->GetAttr("threads", &threads));
        OP_REQUIRES_OK(construction, construction->GetAttr("compressor", &compressor_));
        dtype_ = type == tensorflow::DT_FLOAT  ? QSGD_FLOAT32
                 : type == tensorflow::DT_HALF ? QSGD_FLOAT16
                                               : QSGD_BFLOAT16;
        tensor_ = static_cast<uint32_t>(tensor);
        rank_ = static_cast<uint32_t>(rank);
        size_ = static_cast<uint32_t>(size);
        threads_ = static_cast<uint32_t>(threads);
        counters_ = &counters_of(compressor_);
    }

  protected:
    uint32_t signature(uint64_t count) const {
        const std::string meant = operation_ + schedule_of(compressor_).signature;
        return qsgd_signature(meant.c_str(), tensor_, count, dtype_);
    }

    static uint32_t step_of(const Tensor& step) { return static_cast<uint32_t>(step.scalar<int64_t>()()); }

    // What the frames of all ranks must say.
    qsgd_expectation expectation(const TensorShape& shape, const Tensor& step) const {
        return {static_cast<uint64_t>(shape.num_elements()), tensor_, step_of(step), dtype_, 0};
    }

    // For messages; as hvd_qsgd/steps.py has it.
    std::string what(const qsgd_expectation& expected) const {
        constexpr const char* kNames[] = {"", "float32", "float16", "bfloat16"};
        return "tensor '" + name_ + "' (" + std::to_string(expected.count) + " x " + kNames[dtype_] +
               ", step " + std::to_string(expected.step) + ")";
    }

    static int64_t run_of(const Tensor& run) { return run.scalar<int64_t>()(); }

    // Sums frames that lie in the host's memory, or says what is wrong with them.
    tensorflow::Status decode_sum(const Tensor& frames, const qsgd_expectation& expected, float factor,
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

    // Of frames in the host's memory that were checked, and carry norms if the schedule goes by them.
    tensorflow::Status tell_schedule(const Tensor& frames, const qsgd_expectation& expected,
                                     int64_t run) const {
        const auto* first = static_cast<const qsgd::Header*>(frames.data());
        if (!scheduler.arrived || !(first->flags & QSGD_FLAG_SQUARED_NORM) ||
            scheduler.arrived(compressor_, name_.c_str(), run, first, size_))
            return tensorflow::OkStatus();
        return InvalidArgument(what(expected), ": ", kTwoSteps);
    }

    std::string operation_, name_;
    int64_t compressor_;
    uint32_t dtype_, tensor_, rank_, size_, threads_;
    Counters* counters_;
};

using TensorOp = TensorKernel<tensorflow::OpKernel>;
using AsyncTensorOp = TensorKernel<tensorflow::AsyncOpKernel>;

}  // namespace qsgd_tensorflow
