// What the ops on a GPU share. Gradients and frames are in its memory, all else is in the host's.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tensorflow/core/framework/device.h"
#include "tensorflow/cuda.h"
#include "tensorflow/tensor.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace qsgd_tensorflow {

using tensorflow::Status;

// The stream that TensorFlow's own kernels are on. Memory that is given back is used again in its order: what
// was put on it before may still be reading.
inline void* stream_of(OpKernelContext* context) {
    return context->op_device_context()->stream()->platform_specific_handle().stream;
}

// Until its end, this thread's kernels are for the op's GPU, as they are while TensorFlow calls the op: but
// in other threads they would be for the first GPU of the machine.
inline auto activated(OpKernelContext* context) {
    return context->op_device_context()->stream()->parent()->Activate();
}

inline tensorflow::Device* device_of(OpKernelContext* context) {
    return static_cast<tensorflow::Device*>(context->device());
}

// How the copy went, and the copy.
using Arrived = std::function<void(const Status&, const Tensor&)>;

// Copies `tensor` to the host once all is done that is on the stream. No thread waits; `arrived` is called in
// one that copies for others, too, and may not wait either.
inline void to_host(OpKernelContext* context, const Tensor& tensor, const Arrived& arrived) {
    struct Copy {
        Tensor on_device, on_host;
    };
    const auto copy = std::make_shared<Copy>(Copy{tensor, {}});
    const Status allocated = allocate_on_host(context, tensor.dtype(), tensor.shape(), &copy->on_host);
    if (!allocated.ok()) return arrived(allocated, copy->on_host);
    const auto done = [copy, arrived](const Status& copied) { arrived(copied, copy->on_host); };
    context->op_device_context()->CopyDeviceTensorToCPU(&copy->on_device, "qsgd", device_of(context),
                                                        &copy->on_host, done);
}

// Waits for it.
inline Status to_device(OpKernelContext* context, const Tensor& tensor, Tensor* copy) {
    return context->op_device_context()->CopyCPUTensorToDeviceSync(&tensor, device_of(context), copy);
}

// Runs `work` in a thread that may wait.
inline void elsewhere(OpKernelContext* context, std::function<void()> work) {
    context->device()->tensorflow_cpu_worker_threads()->workers->Schedule(std::move(work));
}

// Memory of the GPU.
inline Status words(OpKernelContext* context, uint64_t bytes, Tensor* memory) {
    const TensorShape shape({static_cast<int64_t>((bytes + 7) / 8)});
    return context->allocate_temp(tensorflow::DT_INT64, shape, memory);
}

inline std::string refusal(int status) {
    const std::string text = qsgd_status_text(status);
    return status == QSGD_CUDA_ERROR ? text + ": " + cuda_kernels().error() : text;
}

inline std::string problem_of(const Status& status) {
    return status.ok() ? "" : std::string(status.message());
}

}  // namespace qsgd_tensorflow
