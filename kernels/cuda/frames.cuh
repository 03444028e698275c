// What is known of frames that are summed, in scratch memory of the device.
#pragma once

#include "cuda/checksum.cuh"
#include "cuda/elias.cuh"
#include "cuda/many.cuh"
#include "rans.h"

namespace qsgd {

// Checks in the order of docs/wire_format.md, section 9: the first that fails is the verdict, and of several
// frames that fail it the first frame.
enum Check : uint32_t { kHeaders, kEnd, kAgreement, kScales, kChecksums, kPayloads, kStreams };

constexpr uint64_t kNoFailure = ~0ull;

QSGD_HD uint64_t failure_of(Check check, uint32_t frame, int status) {
    return static_cast<uint64_t>(check) << 48 | static_cast<uint64_t>(frame) << 16 |
           static_cast<uint64_t>(status);
}
QSGD_HD qsgd_verdict verdict_of(uint64_t failure) {
    if (failure == kNoFailure) return {QSGD_OK, 0};
    return {static_cast<int32_t>(failure & 0xFFFF), static_cast<uint32_t>(failure >> 16)};
}

struct FrameView {
    const uint8_t* base;
    Header header;
    Layout at;
    uint32_t bits;  // of a packed code
    const uint8_t* payload;
    uint64_t key;    // the checksum's, of the payload's first word
    uint64_t found;  // terms of the checksum so far

    // Packed, with whole units in each bucket.
    __device__ bool plain() const {
        return header.codec == QSGD_CODEC_PACKED && header.bucket_size % kUnit == 0 &&
               !is_subtractive(header);
    }
    __device__ const float* scales() const {
        return reinterpret_cast<const float*>(base + QSGD_HEADER_BYTES);
    }
};

// What a rans payload says before its codes.
struct RansView {
    RansMode mode;
    uint32_t classes, columns;
    const uint8_t *units, *column_bytes;
    RansTable tables[kRansMaxClasses];
};

// The same of any codec of variable length.
struct CodedView {
    bool open;  // it is as the format has it
    RansView rans;
    EliasBlocks elias;
};

// Memory for frames of variable length; none if there may not be any.
struct CodedScratch {
    CodedView* views;
    uint64_t*
        offsets;     // of each frame's streams and of their end, or of its stretches, from where it begins on
    int16_t* codes;  // of each frame's units in the pass at hand
    uint64_t streams;  // of a frame
    uint64_t units;    // of a frame in a pass: a multiple of a stretch's

    __device__ uint64_t* offsets_of(uint32_t frame) const { return offsets + (streams + 1) * frame; }
    // A unit's codes, from the pass's first one on.
    __device__ int16_t* unit_codes(uint32_t frame, uint64_t unit) const {
        return codes + kUnit * (units * frame + unit);
    }
    // A lane's: rows are kLanes apart.
    __device__ int16_t* codes_of(uint32_t frame, uint64_t unit) const {
        return unit_codes(frame, unit) + lane_of_half_warp();
    }
};

struct SumJob {
    const uint8_t* frames;
    uint64_t bytes;
    uint32_t frame_count;
    qsgd_expectation expected;
    float factor_;
    qsgd_late late;
    void* out;
    qsgd_verdict* verdict;
    struct State {
        uint64_t failure;  // the first so far
        uint64_t special;  // frames that are not plain, or have other bits than the first
    }* state;
    FrameView* views;
    CodedScratch coded;
    uint64_t first_unit, units;  // of the result, in this pass

    // Whether frames' parts are where they should be. Other blocks may find a later failure meanwhile.
    __device__ bool opened() const { return __ldcg(&state->failure) >= failure_of(kScales, 0, 0); }
    __device__ float factor() const { return late.factor ? *late.factor : factor_; }
    __device__ void fail(Check check, uint32_t frame, int status) const {
        atomic_min(&state->failure, failure_of(check, frame, status));
    }
};

// Checks the headers, and fills in the views.
cudaError_t open_frames(const SumJob& job, void* stream);
cudaError_t open_frames(const JobList<SumJob>& list, void* stream);

// Check 8 of what precedes the streams or the blocks, and where these are.
cudaError_t open_rans_payloads(const SumJob& job, void* stream);
cudaError_t open_elias_payloads(const SumJob& job, void* stream);

// Check 9, and the codes of these frames' units of this pass.
cudaError_t decode_rans_streams(const SumJob& job, void* stream);
cudaError_t decode_elias_blocks(const SumJob& job, void* stream);

// Adds up this pass's units where all frames are `plain`, or where not all are; the other time it does
// nothing.
cudaError_t sum_units(const SumJob& job, bool plain, void* stream);

// Both, for all jobs: of each as many blocks as blocks_of says, and shared memory for the one that needs
// most.
cudaError_t sum_units(const JobList<SumJob>& list, void* stream);
uint32_t blocks_of(const SumJob& job);
uint64_t shared_bytes_of(const SumJob& job);

// Check 7, and the verdict.
cudaError_t conclude_sum(const SumJob& job, void* stream);
cudaError_t conclude_sums(const JobList<SumJob>& list, void* stream);

}  // namespace qsgd
