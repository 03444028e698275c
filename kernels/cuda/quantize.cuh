// From a lane's elements of a unit to codes (docs/wire_format.md, section 5).
#pragma once

#include "cuda/encode.cuh"
#include "cuda/random.cuh"

namespace qsgd {

// How elements of a bucket become x * 2^24.
struct Inverse {
    float rescale, step, top;  // factors, one after the other; the limit
    bool finite,
        exceeds;  // whether the scale is a number; whether it, and so an element, goes beyond the limit
    __device__ Inverse(float scale, float levels)
        : rescale(is_tiny(scale) ? kRescale : 1.0f),
          step(inverse_step(scale, levels * kFractionOne)),
          top(levels * kFractionOne),
          finite(is_finite(scale)),
          exceeds(scale * rescale * step > top) {}
    // Not limited yet.
    __device__ __forceinline__ float operator()(float v) const { return finite ? v * rescale * step : 0; }
};

__device__ __forceinline__ float limited(float x, float top) { return fminf(fmaxf(x, -top), top); }
__device__ __forceinline__ void limit(float* v, float top) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) v[r] = limited(v[r], top);
}

// The same where one scale, of which no element is larger, holds for all of v: then only rounding may exceed
// the limit.
__device__ __forceinline__ void divide(float* v, const Inverse& inverse) {
    if (inverse.finite && inverse.rescale == 1.0f) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) v[r] *= inverse.step;
    } else {
#pragma unroll
        for (int r = 0; r < kRows; ++r) v[r] = inverse(v[r]);
    }
    if (inverse.exceeds) limit(v, inverse.top);
}

// The same of a unit of the tensor, from the scales of its buckets; not limited yet.
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
            v[r] = inverse(v[r]);
        }
    }
}

// x * 2^24 becomes (T + R) * 2^(8 - kBits), which has the code in its highest bits: s <= 127.
template <int kBits>
__device__ __forceinline__ void round_narrow(const float* v, const uint32_t (&words)[4], uint32_t* codes) {
    each_random(words, [&](int r, uint32_t number) {
        codes[r] = (static_cast<uint32_t>(__float2int_rn(v[r])) << (8 - kBits)) + (number >> kBits);
    });
}

// The code of x * 2^24.
__device__ __forceinline__ int32_t round_wide(float x, uint32_t number, float top) {
    return static_cast<int32_t>((__float2ll_rn(limited(x, top)) + (number >> 8)) >> 24);
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
