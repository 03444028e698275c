// The part of CUDA that kernels/cuda/ uses, on the processor, for tests: compiles the same sources as C++.
//
// Blocks run one after the other, in an order that a seed changes; the threads of a block are fibers that run
// until they wait for others. Waiting for what cannot come ends the process with a message. Kernels use
// dynamic shared memory, one-dimensional blocks and grids, and no other API than is declared here.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct EmulatedStream*;

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess             ? "no error"
           : error == cudaErrorInvalidValue ? "invalid argument"
                                            : "invalid configuration argument";
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    memset(memory, value, bytes);
    return cudaSuccess;
}

namespace emulation {

enum class Operation { kNone, kBlockBarrier, kWarpBarrier, kShuffle, kBallot };

struct Thread {
    dim3 thread, block, block_size, grid_size;
    Operation waits_for = Operation::kNone;
    uint32_t mask = 0;    // of the lanes that meet
    uint32_t source = 0;  // of a shuffle: the lane that is read
    uint64_t value = 0;   // what the thread brings, and then what it gets
};

extern Thread* current;

// Wait until all lanes of `mask` come to the same operation (all threads, for a barrier of the block).
uint64_t meet(Operation operation, uint32_t mask, uint64_t value, uint32_t source);

// Run body(arguments) on every thread of the grid.
cudaError_t run(dim3 grid, dim3 block, size_t shared, void (*body)(void**), void** arguments);

inline uint32_t lane() { return current->thread.x % 32; }

template <class T>
T shuffle(uint32_t mask, T value, uint32_t source) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet(Operation::kShuffle, mask, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class... Parameters>
struct Kernel {
    static inline thread_local void (*kernel)(Parameters...);
    template <size_t... I>
    static void call(void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...);
    }
    static void call(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>()); }
};

}  // namespace emulation

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::current->block)
#define blockDim (emulation::current->block_size)
#define gridDim (emulation::current->grid_size)

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
    emulation::Kernel<Parameters...>::kernel = kernel;
    return emulation::run(grid, block, shared, emulation::Kernel<Parameters...>::call, arguments);
}

inline void __syncthreads() { emulation::meet(emulation::Operation::kBlockBarrier, 0, 0, 0); }
inline void __syncwarp(uint32_t mask = ~0u) {
    emulation::meet(emulation::Operation::kWarpBarrier, mask, 0, 0);
}
inline void __threadfence() {}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    const uint32_t first = emulation::lane() / width * width;
    return emulation::shuffle(mask, value, first + static_cast<uint32_t>(source) % width);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32) {
    const uint32_t source = emulation::lane() ^ static_cast<uint32_t>(lanes);
    return emulation::shuffle(mask, value,
                              source / width == emulation::lane() / width ? source : emulation::lane());
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const uint32_t lane = emulation::lane();
    return emulation::shuffle(mask, value, lane % width >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const uint32_t lane = emulation::lane();
    return emulation::shuffle(mask, value,
                              lane % width + delta < static_cast<uint32_t>(width) ? lane + delta : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int condition) {
    return static_cast<uint32_t>(emulation::meet(emulation::Operation::kBallot, mask, condition != 0, 0));
}
inline int __any_sync(uint32_t mask, int condition) { return __ballot_sync(mask, condition) != 0; }
inline int __all_sync(uint32_t mask, int condition) { return __ballot_sync(mask, condition) == mask; }

// Puts combine(what is there) where `at` points to; returns what was there. Others may do so at the same
// time.
template <class T, class Combine>
T exchange(T* at, Combine combine) {
    const T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    __atomic_store_n(at, static_cast<T>(combine(old)), __ATOMIC_RELAXED);
    return old;
}
template <class T>
T atomicAdd(T* at, T value) {
    return exchange(at, [=](T old) { return old + value; });
}
template <class T>
T atomicOr(T* at, T value) {
    return exchange(at, [=](T old) { return old | value; });
}
template <class T>
T atomicMax(T* at, T value) {
    return exchange(at, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* at, T value) {
    return exchange(at, [=](T old) { return value < old ? value : old; });
}

template <class T>
T __ldg(const T* at) {
    return *at;
}
// Past the caches that a processor does not share: atomic operations of others may change what is read.
template <class T>
T __ldcg(const T* at) {
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<uint32_t>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<uint64_t>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __brev(uint32_t x) {
    uint32_t reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    uint32_t chosen = 0;
    for (int k = 0; k < 4; ++k)
        chosen |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * k & 7) & 0xFF) << 8 * k;
    return chosen;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
// Saturates, and is 0 for a NaN.
inline int __float2int_rn(float x) {
    if (x != x) return 0;
    if (x >= 0x1p31f) return INT32_MAX;
    return x < -0x1p31f ? INT32_MIN : static_cast<int>(nearbyintf(x));
}
inline long long __float2ll_rn(float x) {
    if (x != x) return INT64_MIN;
    if (x >= 0x1p63f) return INT64_MAX;
    return x < -0x1p63f ? INT64_MIN : static_cast<long long>(nearbyintf(x));
}
