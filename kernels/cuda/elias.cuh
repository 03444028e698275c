// Blocks of Elias' strings in a payload (docs/wire_format.md, section 6): how long they are, and where they
// begin.
#pragma once

#include "cuda/scan.cuh"
#include "elias.h"

namespace qsgd {

static_assert(kStretch / kEliasBlock <= kThreads, "a thread takes a block of a stretch");

struct EliasBlocks {
    uint32_t size;            // elements a block
    const uint16_t* lengths;  // in bytes

    __device__ uint32_t per_stretch() const { return static_cast<uint32_t>(kStretch) / size; }
    // Of a tensor of `count` elements.
    __device__ uint32_t of_stretch(uint64_t count, uint64_t stretch) const {
        const uint64_t left = ceil_div(count - stretch * kStretch, size);
        return left < per_stretch() ? static_cast<uint32_t>(left) : per_stretch();
    }
    // Bytes of a stretch's block number `k`; 0 if there is none.
    __device__ uint32_t length(uint64_t count, uint64_t stretch, uint32_t k) const {
        return k < of_stretch(count, stretch) ? lengths[stretch * per_stretch() + k] : 0;
    }

    // Where each stretch begins, the first at `begin`; returns where the last ends. `parts` is shared memory
    // for one number a warp; all threads of the block call it together.
    __device__ uint64_t place_stretches(uint64_t count, uint64_t begin, uint64_t* offsets,
                                        uint64_t* parts) const {
        const uint64_t stretches = stretches_of(count);
        for (uint64_t s = threadIdx.x / kWarp; s < stretches; s += blockDim.x / kWarp) {
            uint32_t bytes = 0;
            for (uint32_t k = threadIdx.x % kWarp; k < per_stretch(); k += kWarp)
                bytes += length(count, s, k);
            bytes = across<kWarp>(bytes, Sum());
            if (threadIdx.x % kWarp == 0) offsets[s] = bytes;
        }
        __syncthreads();
        const Share mine(stretches);
        uint64_t bytes = 0, all;
        for (uint64_t s = mine.begin; s < mine.end; ++s) bytes += offsets[s];
        uint64_t at = begin + block_scan(bytes, parts, all);
        for (uint64_t s = mine.begin; s < mine.end; ++s) {
            const uint64_t own = offsets[s];
            offsets[s] = at;
            at += own;
        }
        return begin + all;
    }
};

}  // namespace qsgd
