#include "cuda/status.h"

namespace qsgd {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

int status_of(cudaError_t error) {
    if (error == cudaSuccess) return QSGD_OK;
    last_error = error;
    return QSGD_CUDA_ERROR;
}

}  // namespace qsgd

uint32_t qsgd_cuda_abi_version(void) { return QSGD_ABI_VERSION; }

const char* qsgd_cuda_error(void) { return cudaGetErrorString(qsgd::last_error); }
