// From payloads to codes and their values (docs/wire_format.md, sections 6 and 10).
#pragma once

#include "cpu/jobs.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

// The code at bit At of a lane's string, in the lane's low bits, others above it.
template <int Bits, int At>
QSGD_INLINE Lanes::Int code_at_bottom(const Lanes::Int* words) {
    constexpr int word = At / 32, bit = At % 32;
    if constexpr (bit + Bits <= 32)
        return Lanes::field<Bits, bit>(words[word]);
    else
        return Lanes::bit_or(Lanes::shift_right<bit>(words[word]),
                             Lanes::shift_left<(bit > 0) ? 32 - bit : 0>(words[word + 1]));
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

// A code as a number times 2^(32 - Bits), which keeps it in the top bits: both that and its step divided by
// as much are exact.
template <int Bits, int At>
QSGD_INLINE Lanes::Float scaled_code(const Lanes::Int* words) {
    constexpr uint32_t top = 0xFFFFFFFFu << (32 - Bits);
    return Lanes::convert(Lanes::bit_and(code_at_top<Bits, At>(words), Lanes::set(top)));
}
constexpr float code_scale(uint32_t bits) { return 1.0f / (1u << (32 - bits)); }

// All codes of a unit, scaled.
template <int Bits>
void unpack_unit(const uint32_t* words, float* codes) {
    Lanes::Int lanes[Bits];
    for (int w = 0; w < Bits; ++w) lanes[w] = Lanes::load(words + 16 * w);
    unroll<0, 32>([&](auto r) QSGD_INLINE_LAMBDA {
        Lanes::store(codes + 16 * r.value, scaled_code<Bits, r.value * Bits>(lanes));
    });
}

using UnpackUnit = void (*)(const uint32_t* words, float* codes);

inline UnpackUnit unpack_unit_of(uint32_t bits) {
    constexpr UnpackUnit all[] = {unpack_unit<2>, unpack_unit<3>, unpack_unit<4>, unpack_unit<5>,
                                  unpack_unit<6>, unpack_unit<7>, unpack_unit<8>};
    return all[bits - 2];
}

// Calls body(row, codes) for the five rows of a ternary unit: the byte as a fraction of 243 in 16 bits, whose
// leading base-3 digit comes first.
template <class Body>
QSGD_INLINE void each_ternary_row(const uint8_t* bytes, Body&& body) {
    const Lanes::Int low = Lanes::set(0xFFFFu), minus_one = Lanes::set(0xFFFFFFFFu);
    const Lanes::Int ceiling = Lanes::set(270u);  // of 2^16 / 243
    Lanes::Int fraction = Lanes::multiply(Lanes::load_bytes(bytes), ceiling);
    unroll<0, 5>([&](auto r) QSGD_INLINE_LAMBDA {
        fraction = Lanes::bit_and(fraction, low);
        fraction = Lanes::add(Lanes::add(fraction, fraction), fraction);
        body(Index<4 - r.value>{}, Lanes::add(Lanes::shift_right<16>(fraction), minus_one));
    });
}

inline void unpack_ternary(const uint8_t* bytes, float* codes) {
    each_ternary_row(bytes, [=](auto row, Lanes::Int code) QSGD_INLINE_LAMBDA {
        Lanes::store(codes + 16 * row.value, Lanes::convert(code));
    });
}

// Sixteen codes as numbers.
inline Lanes::Float numbers(const float* codes) { return Lanes::load(codes); }
inline Lanes::Float numbers(const int16_t* codes) { return Lanes::convert(Lanes::load_halves(codes)); }

inline float scale_of(const FrameView& frame, uint64_t bucket) {
    float scale;
    memcpy(&scale, frame.base + QSGD_HEADER_BYTES + 4 * bucket, sizeof scale);
    return scale;
}

// What the codes of `count` buckets from number `first` on are multiplied by, having been multiplied by 1 /
// code_scale.
inline void bucket_steps(const FrameView& frame, uint64_t first, uint64_t count, float code_scale,
                         float* steps) {
    const float levels = static_cast<float>(frame.header.levels);
    for (uint64_t k = 0; k < count; ++k)
        steps[k] = grid_step(scale_of(frame, first + k), levels) * code_scale;
}

}  // namespace
}  // namespace qsgd
