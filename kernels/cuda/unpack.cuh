// From payloads to a lane's codes of a unit (docs/wire_format.md, section 6).
#pragma once

#include "cuda/frames.cuh"
#include "cuda/pack.cuh"

namespace qsgd {

// 2^exponent.
__device__ __forceinline__ float power_of_two(int exponent) {
    return float_from_bits(static_cast<uint32_t>(127 + exponent) << 23);
}

// The words of a lane's string, zeros where the payload has ended.
template <int kBits>
__device__ __forceinline__ void load_string(const FrameView& view, uint64_t unit, uint32_t (&words)[kBits]) {
    const uint64_t first = view.at.payload + 64 * kBits * unit;
    const auto* at = reinterpret_cast<const uint32_t*>(view.base + first) + lane_of_half_warp();
    const uint64_t left = first < view.at.coded_bytes ? view.at.coded_bytes - first : 0;
#pragma unroll
    for (int w = 0; w < kBits; ++w) words[w] = 64u * w < left ? __ldg(at + kLanes * w) : 0;
}

// Calls body(row, number, exponent) for the codes of a lane's string, each being number / 2^exponent: a code is
// turned into a number where it stands, in the mantissa of 2^23, which takes no shift and no conversion.
template <int kBits, class Body>
__device__ __forceinline__ void each_packed(const uint32_t (&words)[kBits], Body body) {
    constexpr int kDown = (9 + kBits - 1) / kBits * kBits;  // brings the top of a word into a mantissa
    constexpr uint32_t kMask = (1u << kBits) - 1, kSign = 1u << (kBits - 1), kOne = 0x4B000000u;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int bit = r * kBits % 32, word = r * kBits / 32;
        uint32_t field = words[word];
        int at = bit;
        if (bit + kBits > 32) {
            field = __funnelshift_r(field, words[word + 1], bit), at = 0;
        } else if (bit + kBits > 23) {
            field >>= kDown, at -= kDown;
        }
        const float lifted = float_from_bits((field & kMask << at) ^ (kOne | kSign << at));
        body(r, lifted - float_from_bits(kOne | kSign << at), at);
    }
}

// Calls body(row, number, 0) for the ternary codes of a lane's rows.
template <class Body>
__device__ __forceinline__ void each_ternary(const FrameView& view, uint64_t unit, Body body) {
    const uint64_t first_row = kRows * unit, units = (view.at.coded_bytes - view.at.payload) / 16;
    const uint8_t* const bytes = view.base + view.at.payload + lane_of_half_warp();
    uint64_t at = first_row / 5;
    uint32_t digit = static_cast<uint32_t>(first_row % 5), rest = at < units ? __ldg(bytes + 16 * at) : 0;
    for (uint32_t k = 0; k < digit; ++k) rest /= 3;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        body(r, static_cast<float>(static_cast<int>(rest % 3) - 1), 0);
        rest /= 3;
        if (++digit == 5) digit = 0, rest = ++at < units ? __ldg(bytes + 16 * at) : 0;
    }
}

// A half-warp's words of the payload of a unit: those of ternary units that begin in it.
__device__ __forceinline__ uint64_t first_payload_word(const FrameView& view, uint64_t unit) {
    const bool ternary = view.header.codec == QSGD_CODEC_TERNARY;
    const uint64_t word = ternary ? 2 * ceil_div(kRows * unit, 5) : 8 * view.bits * unit;
    const uint64_t first = view.at.payload / 8 + word, end = view.at.coded_bytes / 8;
    return first < end ? first : end;
}

}  // namespace qsgd
