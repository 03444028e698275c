// Launching kernels; what a thread is to its half-warp, warp and block.
#pragma once

#include <cuda_runtime.h>

#include "frame.h"
#include "qsgd_cuda.h"

extern __shared__ unsigned char qsgd_shared_memory[];

namespace qsgd {

// A grid of no more blocks than this takes any number of items: blocks go through them in turn.
#ifdef QSGD_CUDA_MOST_BLOCKS
constexpr uint64_t kMostBlocks = QSGD_CUDA_MOST_BLOCKS;
#else
constexpr uint64_t kMostBlocks = 8192;
#endif
constexpr uint32_t kWarp = 32, kLanes = 16;  // a half-warp's lanes are the lanes of docs/wire_format.md
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr uint32_t kThreads = 256;  // of a block that nothing else says of

inline uint32_t blocks_for(uint64_t items) {
    return static_cast<uint32_t>(items < 1 ? 1 : items < kMostBlocks ? items : kMostBlocks);
}

struct Launch {
    uint32_t blocks, threads;
    uint64_t shared_bytes;
    void* stream;
};

template <class T>
struct Exactly {
    using Type = T;
};

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how,
                   typename Exactly<Parameters>::Type... arguments) {
    void* addresses[] = {&arguments...};
#ifdef __CUDACC__
    const auto function = reinterpret_cast<const void*>(kernel);  // CUDA 11 takes nothing else
#else
    const auto function = kernel;
#endif
    return cudaLaunchKernel(function, dim3(how.blocks), dim3(how.threads), addresses, how.shared_bytes,
                            static_cast<cudaStream_t>(how.stream));
}

// The 128 bytes around `at`, on their way to the second-level cache. Nothing says what happens where there is
// no memory: the emulation reads it, for checkers to see.
__device__ __forceinline__ void prefetch(const void* at) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#else
    (void)*static_cast<const volatile uint8_t*>(at);
#endif
}

// The compiler knows nothing of `value` from here on, and moves nothing that follows from it to before.
#ifdef __CUDA_ARCH__
__device__ __forceinline__ void opaque(uint32_t& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void opaque(uint64_t& value) { asm volatile("" : "+l"(value)); }
__device__ __forceinline__ void opaque(float& value) { asm volatile("" : "+f"(value)); }
#else
template <class T>
void opaque(T&) {}
#endif

// A block's part of a job that so many blocks share.
struct Part {
    uint32_t block, blocks;
    __device__ __forceinline__ uint64_t thread() const {
        return static_cast<uint64_t>(block) * blockDim.x + threadIdx.x;
    }
    __device__ __forceinline__ uint64_t threads() const { return static_cast<uint64_t>(blocks) * blockDim.x; }
};
__device__ __forceinline__ Part part_of_grid() { return {blockIdx.x, gridDim.x}; }

// The block's shared memory, all of it dynamic.
template <class T>
__device__ __forceinline__ T* shared_memory() {
    return reinterpret_cast<T*>(qsgd_shared_memory);
}

__device__ __forceinline__ uint32_t lane_of_half_warp() { return threadIdx.x % kLanes; }
__device__ __forceinline__ uint32_t half_warp_of_block() { return threadIdx.x / kLanes; }

// The lanes of this half-warp for which `there` holds; all lanes of the warp call it together.
__device__ __forceinline__ uint32_t half_warp_ballot(bool there) {
    return __ballot_sync(kAllLanes, there) >> threadIdx.x / kLanes % 2 * kLanes & 0xFFFF;
}

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Maximum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};

// The larger of |v| and a number that has no sign, by their bits; a NaN is the largest.
__device__ __forceinline__ float larger_magnitude(float largest, float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("{.reg .f32 m; abs.f32 m, %1; max.NaN.f32 %0, %0, m;}" : "+f"(largest) : "f"(v));
    return largest;
#else
    return float_from_bits(Maximum()(bits_from_float(largest), bits_from_float(v) & 0x7FFFFFFFu));
#endif
}

// All lanes of a group get combine() over the group: lane l with l + 8, with l + 4, ... (docs/wire_format.md,
// section 3), starting at half the group.
template <uint32_t kGroup, class T, class Combine>
__device__ __forceinline__ T across(T value, Combine combine) {
#pragma unroll
    for (uint32_t lanes = kGroup / 2; lanes > 0; lanes /= 2)
        value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
    return value;
}

// Each lane of a group gets combine() over it and the lanes before it.
template <uint32_t kGroup, class T, class Combine>
__device__ __forceinline__ T scan(T value, Combine combine) {
#pragma unroll
    for (uint32_t lanes = 1; lanes < kGroup; lanes *= 2) {
        const T before = __shfl_up_sync(kAllLanes, value, lanes, kGroup);
        if (threadIdx.x % kGroup >= lanes) value = combine(before, value);
    }
    return value;
}

// Atomics of 64 bits, which CUDA has for a type of another name.
__device__ __forceinline__ void atomic_add(uint64_t* at, uint64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
__device__ __forceinline__ void atomic_min(uint64_t* at, uint64_t value) {
    atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
__device__ __forceinline__ void atomic_max(uint64_t* at, uint64_t value) {
    atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

// The sum over a block's threads, for its first thread. `parts` is shared memory for one number a warp.
__device__ inline uint64_t block_sum(uint64_t value, uint64_t* parts) {
    value = across<kWarp>(value, Sum());
    __syncthreads();  // whoever used the memory before
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    uint64_t total = 0;
    if (threadIdx.x == 0)
        for (uint32_t warp = 0; warp < blockDim.x / kWarp; ++warp) total += parts[warp];
    return total;
}

}  // namespace qsgd
