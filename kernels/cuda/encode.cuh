// What the kernels that make a frame share.
#pragma once

#include "cuda/checksum.cuh"
#include "cuda/many.cuh"

namespace qsgd {

struct EncodeJob {
    qsgd_spec spec;
    Layout at;
    const void* gradient;
    uint8_t* frame;
    const qsgd_draw* draw;  // null, or seed and step
    uint64_t* terms;        // parts of the checksum: one for each block of encode_units
    uint32_t group;         // units in a bucket whose scale encode_units finds; 0: all scales are there

    __device__ float* scales() const { return reinterpret_cast<float*>(frame + QSGD_HEADER_BYTES); }
    __device__ uint64_t seed() const { return draw ? draw->seed : spec.seed; }
    __device__ uint32_t step() const { return draw ? draw->step : spec.step; }
    // But for the checksum.
    __device__ Header header(const Layout& there, const double* squared_norm) const {
        qsgd_spec drawn = spec;
        drawn.seed = seed(), drawn.step = step();
        return header_of(drawn, there, squared_norm ? canonical_bits(*squared_norm) : 0);
    }
    __device__ uint64_t scale_words_end() const { return kHeaderWords + ceil_div(at.buckets, 2); }
};

__device__ inline void put_header(void* frame, const Header& header) {
    uint64_t words[kHeaderWords];
    memcpy(words, &header, sizeof words);
    for (uint64_t k = 0; k < kHeaderWords; ++k) *word_of(frame, k) = words[k];
}

// Scratch memory of find_scales and find_squared_norm: two arrays of so many float64.
struct TreeScratch {
    double *leaves, *nodes;
};
uint64_t tree_leaves(const qsgd_spec& spec);
uint64_t tree_nodes(const qsgd_spec& spec);

// The scales of all buckets, into the frame.
cudaError_t find_scales(const EncodeJob& job, const TreeScratch& scratch, void* stream);

// The sum of all squares, to where *result points.
cudaError_t find_squared_norm(const EncodeJob& job, const TreeScratch& scratch, const double** result,
                              void* stream);

// Sets job.group; false if a bucket's scale is not found on the way.
bool find_group(EncodeJob& job);

// Of encode_units.
uint32_t blocks_of(const EncodeJob& job);

cudaError_t encode_frame(EncodeJob job, const TreeScratch& tree, void* stream);

// The frames of jobs with `codec`, each with a group and without a squared norm, by one launch for all.
cudaError_t encode_frames(ListWriter<EncodeJob>& jobs, uint8_t codec, void* stream);

}  // namespace qsgd
