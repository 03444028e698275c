// From payloads to codes and their values (docs/wire_format.md, sections 6 and 10).
#pragma once

#include "cpu/unroll.h"
#include "frame.h"

namespace qsgd {
namespace {

// The code at bit At of a lane's string, in the lane's low bits, others above it.
template <int Bits, int At>
QSGD_INLINE Lanes::Int code_at_bottom(const Lanes::Int* words) {
    constexpr int word = At / 32, bit = At % 32;
    const Lanes::Int low = Lanes::shift_right<bit>(words[word]);
    if constexpr (bit + Bits <= 32)
        return low;
    else
        return Lanes::bit_or(low, Lanes::shift_left<(bit > 0) ? 32 - bit : 0>(words[word + 1]));
}

// The same in the lane's top bits, others below it.
template <int Bits, int At>
QSGD_INLINE Lanes::Int code_at_top(const Lanes::Int* words) {
    constexpr int word = At / 32, end = At % 32 + Bits;
    if constexpr (end <= 32)
        return Lanes::shift_left<32 - end>(words[word]);
    else
        return Lanes::bit_or(Lanes::shift_right<(end > 32) ? end - 32 : 0>(words[word]),
                             Lanes::shift_left<(end > 32) ? 64 - end : 0>(words[word + 1]));
}

// By what the steps given to value() are multiplied. Codes that are not looked up are converted in the top
// bits, as code * 2^(32 - Bits): both are exact, no step here being tiny.
constexpr float step_factor(uint32_t bits) {
    return bits <= Lanes::kLookupBits ? 1.0f : 1.0f / (1u << (32 - bits));
}

// The value of the code at bit At of each lane's string.
template <int Bits, int At>
QSGD_INLINE Lanes::Float value(const Lanes::Int* words, float step) {
    if constexpr (Bits <= Lanes::kLookupBits) {
        return Lanes::lookup<Bits>(code_at_bottom<Bits, At>(words), step);
    } else {
        constexpr uint32_t top = 0xFFFFFFFFu << (32 - Bits);
        const Lanes::Int code = Lanes::bit_and(code_at_top<Bits, At>(words), Lanes::set(top));
        return Lanes::multiply(Lanes::convert(code), Lanes::set(step));
    }
}

template <int Bits>
void unpack_unit(const uint32_t* words, int8_t* codes) {
    Lanes::Int lanes[Bits];
    for (int w = 0; w < Bits; ++w) lanes[w] = Lanes::load(words + 16 * w);
    unroll<0, 32>([&](auto r) QSGD_INLINE_LAMBDA {
        const Lanes::Int code =
            Lanes::shift_right_signed<32 - Bits>(code_at_top<Bits, r.value * Bits>(lanes));
        Lanes::store_low_bytes(codes + 16 * r.value, code);
    });
}

using UnpackUnit = void (*)(const uint32_t* words, int8_t* codes);

inline UnpackUnit unpack_unit_of(uint32_t bits) {
    constexpr UnpackUnit all[] = {unpack_unit<2>, unpack_unit<3>, unpack_unit<4>, unpack_unit<5>,
                                  unpack_unit<6>, unpack_unit<7>, unpack_unit<8>};
    return all[bits - 2];
}

// Sixteen bytes to five rows of digits - 1: the byte as a fraction of 243, whose leading base-3 digit comes
// first.
inline void unpack_ternary(const uint8_t* bytes, int8_t* codes) {
    uint32_t fraction[16];
    for (int l = 0; l < 16; ++l) fraction[l] = bytes[l] * 270u & 0xFFFFu;  // 270 = ceil(2^16 / 243)
    for (int row = 4; row >= 0; --row)
        for (int l = 0; l < 16; ++l) {
            fraction[l] *= 3;
            codes[16 * row + l] = static_cast<int8_t>((fraction[l] >> 16) - 1);
            fraction[l] &= 0xFFFFu;
        }
}

}  // namespace
}  // namespace qsgd
