// From CUDA's errors to statuses; alignments.
#pragma once

#include <cuda_runtime.h>

#include "qsgd_cuda.h"

namespace qsgd {

// Remembers the error for qsgd_cuda_error.
int status_of(cudaError_t error);

inline bool aligned(const void* memory, uint64_t bytes) {
    return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}
inline uint64_t element_bytes(uint32_t dtype) { return dtype == QSGD_FLOAT32 ? 4 : 2; }

}  // namespace qsgd
