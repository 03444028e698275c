// What is known of frames that are summed, in scratch memory of the device.
#pragma once

#include "cuda/checksum.cuh"

namespace qsgd {

// Checks in the order of docs/wire_format.md, section 9: the first that fails is the verdict, and of several
// frames that fail it the first frame.
enum Check : uint32_t { kHeaders, kEnd, kAgreement, kScales, kChecksums };

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
    uint32_t bits;   // of a packed code
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
        uint64_t special;  // frames that are not plain
    }* state;
    FrameView* views;

    __device__ float factor() const { return late.factor ? *late.factor : factor_; }
    __device__ void fail(Check check, uint32_t frame, int status) const {
        atomic_min(&state->failure, failure_of(check, frame, status));
    }
};

// Checks the headers, and fills in the views.
cudaError_t open_frames(const SumJob& job, void* stream);

}  // namespace qsgd
