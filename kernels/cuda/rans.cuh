// What the kernels that make a rans frame share: first its front, up to the streams, and the streams apart
// from each other in scratch memory; then, when its length is known, the frame.
#pragma once

#include "cuda/encode.cuh"
#include "rans_choice.h"

namespace qsgd {

constexpr uint32_t kRansModes = 3;

// What kernels find for those after them.
struct RansState {
    RansCounts counts[2][kRansModes * kRansMaxClasses];  // without shifts; then of classes that have one
    uint32_t largest;                                    // sum of a sampled unit's magnitudes
    RansEncoder encoder;
    uint64_t units, lengths, streams;  // where these begin in the frame
    uint64_t coded_bytes;
};

struct RansFrame {
    EncodeJob job;  // whose frame is the front
    uint64_t units, sampled, streams;
    uint32_t modes;  // that come into question
    RansState* state;
    int16_t* codes;  // of the sampled units
    uint32_t* sums;  // of their magnitudes
    uint32_t *column_sums, *column_counts;
    uint8_t* column_bytes;
    uint64_t* expected;  // sums of the columns' expected magnitudes
    uint64_t* offsets;  // of the streams and of their end in the frame; before, the streams' lengths in bytes
    uint8_t* words;     // the streams

    __device__ RansChoice choice(RansMode mode, uint32_t classes) const {
        const uint32_t columns = mode == kColumnClasses ? job.spec.columns : 0;
        return {mode,    static_cast<uint8_t>(classes), columns, rans_base(state->largest), column_bytes,
                expected};
    }
    __device__ bool complete() const { return sampled == units; }
    __device__ uint64_t units_of(uint64_t stretch) const { return units_of_stretch(job.spec.count, stretch); }

    // Room for a stream of the stretch.
    QSGD_HD uint64_t room(uint64_t units) {
        return most_stream_bytes(ceil_div(units, rans_streams(units)), 1);
    }
    __device__ uint8_t* stream(uint64_t number) const {
        const uint64_t stretch = number / kRansStreams;
        return words + stretch * kRansStreams * room(kStretch / kUnit) +
               number % kRansStreams * room(units_of(stretch));
    }
};

// The model, from a sample of the units, and the front as far as it tells.
cudaError_t choose_rans_model(const RansFrame& frame, void* stream);

// The streams, and the units' numbers.
cudaError_t encode_rans_streams(const RansFrame& frame, void* stream);

}  // namespace qsgd
