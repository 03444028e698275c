// From codes to payloads (docs/wire_format.md, section 6).
#pragma once

#include "cuda/elements.cuh"

namespace qsgd {

// A lane's string of codes, which stand in the highest bits, to its words at out[0], out[16], ...: from the
// last one on, each is shifted in from below.
template <int kBits>
__device__ __forceinline__ void pack_bits(const uint32_t* codes, uint32_t* out) {
    uint32_t words[kBits] = {};
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r) {
        const int word = r * kBits / 32, beyond = r * kBits % 32 + kBits - 32;
        if (beyond > 0) words[word + 1] = __funnelshift_l(codes[r], words[word + 1], beyond);
        words[word] = __funnelshift_l(codes[r], words[word], kBits);
    }
#pragma unroll
    for (int w = 0; w < kBits; ++w) out[kLanes * w] = words[w];
}

// Calls body(Bits<b>()) for b bits.
template <int kBits>
struct Bits {
    static constexpr int value = kBits;
};
template <class Body>
__device__ __forceinline__ void with_bits(uint32_t bits, Body body) {
    switch (bits) {
        case 2:
            return body(Bits<2>());
        case 3:
            return body(Bits<3>());
        case 4:
            return body(Bits<4>());
        case 5:
            return body(Bits<5>());
        case 6:
            return body(Bits<6>());
        case 7:
            return body(Bits<7>());
        default:
            return body(Bits<8>());
    }
}

// Eight lanes of five rows of ternary digits, as bytes, to eight bytes of the payload.
__device__ __forceinline__ uint64_t ternary_word(const uint64_t* rows) {
    uint64_t word = 0;
#pragma unroll
    for (int row = 4; row >= 0; --row) word = 3 * word + rows[2 * row];
    return word;
}

}  // namespace qsgd
