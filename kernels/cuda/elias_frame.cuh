// What the kernels that make an Elias frame share: first its front, up to the strings, and the strings apart
// from each other in scratch memory; then, when its length is known, the frame.
#pragma once

#include "cuda/elias.cuh"
#include "cuda/encode.cuh"

namespace qsgd {

struct EliasFrame {
    EncodeJob job;  // whose frame is the front
    uint64_t front;
    uint64_t number;     // of blocks
    uint32_t block;      // elements of one
    uint32_t room;       // for the string of one, in words of 32 bits
    uint32_t unit_room;  // the same for what a unit adds to one
    uint16_t* lengths;
    uint32_t* strings;
    uint64_t* offsets;  // of the stretches' strings in the frame
    int16_t* codes;     // of units, and how many of them are not 0, where blocks are of several units
    uint32_t* nonzeros;
    EliasWords words;

    __device__ EliasBlocks blocks() const { return {block, lengths}; }
    __device__ uint32_t* string(uint64_t k) const { return strings + k * room; }
};

// The strings, and their lengths.
cudaError_t encode_elias_blocks(const EliasFrame& frame, void* stream);

}  // namespace qsgd
