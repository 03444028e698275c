#include "tensorflow/cuda.h"

#include <dlfcn.h>

namespace qsgd_tensorflow {
namespace {

CudaKernels kernels;

template <class Function>
bool find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

}  // namespace

const CudaKernels& cuda_kernels() { return kernels; }

}  // namespace qsgd_tensorflow

// Take the CUDA kernels from the library at `path`, for good; before any op runs on a GPU. Returns whether
// they are there, and the ops can use them.
extern "C" QSGD_API int qsgd_tensorflow_load_cuda(const char* path) {
#ifdef QSGD_TENSORFLOW_GPU
    using qsgd_tensorflow::find;
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return 0;
    qsgd_tensorflow::CudaKernels found;
    const bool all = find(library, "qsgd_cuda_error", found.error) &&
                     find(library, "qsgd_cuda_encode_scratch", found.encode_scratch) &&
                     find(library, "qsgd_cuda_encode", found.encode) &&
                     find(library, "qsgd_cuda_encode_begin", found.encode_begin) &&
                     find(library, "qsgd_cuda_encode_end", found.encode_end) &&
                     find(library, "qsgd_cuda_decode_scratch", found.decode_scratch) &&
                     find(library, "qsgd_cuda_decode_scratch_variable", found.decode_scratch_variable) &&
                     find(library, "qsgd_cuda_decode_sum", found.decode_sum);
    if (all) qsgd_tensorflow::kernels = found;
    return all;
#else
    (void)path;
    return 0;
#endif
}
