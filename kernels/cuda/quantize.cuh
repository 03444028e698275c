// From a lane's elements of a unit to codes (docs/wire_format.md, section 5).
#pragma once

#include "cuda/encode.cuh"
#include "cuda/random.cuh"

namespace qsgd {

// What an element is multiplied by, one factor after the other.
struct Inverse {
    float rescale, step;
    bool finite;
    __device__ Inverse(float scale, float levels)
        : rescale(is_tiny(scale) ? kRescale : 1.0f),
          step(inverse_step(scale, levels * kFractionOne)),
          finite(is_finite(scale)) {}
    // x * 2^24, before it is limited.
    __device__ __forceinline__ float operator()(float v) const { return v * rescale * step; }
};

// v becomes x * 2^24 where one scale holds for all of it.
__device__ __forceinline__ void divide(float* v, const Inverse& inverse) {
    if (inverse.finite && inverse.rescale == 1.0f) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) v[r] *= inverse.step;
    } else {
#pragma unroll
        for (int r = 0; r < kRows; ++r) v[r] = inverse.finite ? inverse(v[r]) : 0;
    }
}

// The same of a unit of the tensor, from the scales of its buckets.
__device__ inline void divide(float* v, uint64_t unit, const qsgd_spec& spec, const float* scales,
                              float levels) {
    const uint64_t first = kUnit * unit + lane_of_half_warp();
    if (first >= spec.count) return;
    const uint64_t left = spec.count - first;
    BucketWalk walk(first, spec.bucket_size);
    Inverse inverse(scales[walk.bucket], levels);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (kLanes * r < left) {
            if (r > 0 && walk.next_row()) inverse = Inverse(scales[walk.bucket], levels);
            v[r] = inverse.finite ? inverse(v[r]) : 0;
        }
    }
}

// x * 2^24 becomes T + R, which has the code from bit 24 on: s <= 127.
__device__ __forceinline__ void round_narrow(const float* v, const uint32_t (&words)[4], float limit,
                                             uint32_t* codes) {
    each_random(words, [&](int r, uint32_t random) {
        codes[r] = static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(v[r], -limit), limit))) + random;
    });
}

// The code of x * 2^24.
__device__ __forceinline__ int32_t round_wide(float x, uint32_t random, float limit) {
    return static_cast<int32_t>((__float2ll_rn(fminf(fmaxf(x, -limit), limit)) + random) >> 24);
}

__device__ __forceinline__ uint32_t magnitude_of(int32_t code) {
    return static_cast<uint32_t>(code < 0 ? -code : code);
}

// Calls body(row, code) for a lane's elements of a unit, from the scales of its buckets; past the end codes
// are 0.
template <class Body>
__device__ __forceinline__ void each_code(const EncodeJob& job, const Random& random, uint64_t unit,
                                          Body body) {
    const auto levels = static_cast<float>(job.spec.levels);
    float v[kRows];
    uint32_t words[4];
    load_unit(job.gradient, job.spec.dtype, unit, job.spec.count, v);
    divide(v, unit, job.spec, job.scales(), levels);
    random.words(unit, lane_of_half_warp(), words);
    each_random(words,
                [&](int r, uint32_t number) { body(r, round_wide(v[r], number, levels * kFractionOne)); });
}

}  // namespace qsgd
