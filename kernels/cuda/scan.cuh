// Sums over the threads of a block that come before.
#pragma once

#include "cuda/launch.cuh"

namespace qsgd {

// The sum over the threads before this one, and over all. `parts` is shared memory for one number a warp; all
// threads of the block call it together.
__device__ inline uint64_t block_scan(uint64_t value, uint64_t* parts, uint64_t& total) {
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const uint64_t sum = scan<kWarp>(value, Sum());
    __syncthreads();  // whoever used the memory before
    if (lane == kWarp - 1) parts[warp] = sum;
    __syncthreads();
    uint64_t earlier = 0;
    total = 0;
    for (uint32_t w = 0; w < warps; ++w) {
        if (w < warp) earlier += parts[w];
        total += parts[w];
    }
    return earlier + sum - value;
}

// This thread's part of so many items: [begin, end).
struct Share {
    uint64_t begin, end;
    __device__ explicit Share(uint64_t items) {
        const uint64_t each = ceil_div(items, blockDim.x), first = each * threadIdx.x;
        begin = first < items ? first : items;
        end = items - begin < each ? items : begin + each;
    }
};

}  // namespace qsgd
