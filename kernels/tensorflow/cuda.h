// The CUDA kernels' library, which is loaded when the program runs: these ops need no CUDA to be built.
#pragma once

#include "qsgd_cuda.h"

// TensorFlow 2.20 or newer, which has that file: with older ones no thread but an op's own can put work on a
// GPU, or the headers that it takes are not there.
#if __has_include("tensorflow/core/public/release_version.h")
#define QSGD_TENSORFLOW_GPU
#endif

namespace qsgd_tensorflow {

struct CudaKernels {
    decltype(&qsgd_cuda_error) error = nullptr;
    decltype(&qsgd_cuda_encode_scratch) encode_scratch = nullptr;
    decltype(&qsgd_cuda_encode) encode = nullptr;
    decltype(&qsgd_cuda_encode_begin) encode_begin = nullptr;
    decltype(&qsgd_cuda_encode_end) encode_end = nullptr;
    decltype(&qsgd_cuda_decode_scratch) decode_scratch = nullptr;
    decltype(&qsgd_cuda_decode_scratch_variable) decode_scratch_variable = nullptr;
    decltype(&qsgd_cuda_decode_sum) decode_sum = nullptr;
};

// Those that qsgd_tensorflow_load_cuda found; all null before.
const CudaKernels& cuda_kernels();

}  // namespace qsgd_tensorflow
