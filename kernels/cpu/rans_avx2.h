// What the range-ANS coder asks of sixteen lanes, in AVX2. rans_avx512.h defines the same names.
#pragma once

#include "cpu/avx2.h"

namespace qsgd {
namespace {

// For each mask of eight lanes: where the bytes of 16-bit words go that are to be packed, or to be spread
// out.
struct HalfShuffles {
    uint8_t pack[256][16], spread[256][16];

    constexpr HalfShuffles() : pack(), spread() {
        for (int mask = 0; mask < 256; ++mask)
            for (int lane = 0, word = 0; lane < 8; ++lane) {
                const bool there = (mask >> lane & 1) != 0;
                for (int byte = 0; byte < 2; ++byte) {
                    spread[mask][2 * lane + byte] = static_cast<uint8_t>(there ? 2 * word + byte : 0x80);
                    if (there) pack[mask][2 * word + byte] = static_cast<uint8_t>(2 * lane + byte);
                }
                word += there;
            }
    }
};
alignas(64) constexpr HalfShuffles kHalfShuffles;

struct RansLanes : Lanes {
    using Mask = Int;  // all bits of a lane
    // 32 numbers, of which the low five bits choose: they stay in memory.
    using Table = const uint32_t*;
    using FloatTable = const float*;
    static Table load_table(const uint32_t* p) { return p; }
    static FloatTable load_table(const float* p) { return p; }
    static __m256 look_up256(const void* table, __m256i at) {
        const auto* const p = static_cast<const uint8_t*>(table);
        const auto part = [&](int k) {
            return _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(load256(p + 32 * k), at));
        };
        const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
        const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 27));
        return _mm256_blendv_ps(_mm256_blendv_ps(part(0), part(1), bit3),
                                _mm256_blendv_ps(part(2), part(3), bit3), bit4);
    }
    static Int look_up(Table t, Int at) {
        return {_mm256_castps_si256(look_up256(t, at.a)), _mm256_castps_si256(look_up256(t, at.b))};
    }
    static Float look_up(FloatTable t, Int at) { return {look_up256(t, at.a), look_up256(t, at.b)}; }
    static __m256i gather256(const uint32_t* table, __m256i at) {
        return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), at, 4);
    }
    static Int gather(const uint32_t* table, Int at) {
        return {gather256(table, at.a), gather256(table, at.b)};
    }

    static Int subtract(Int x, Int y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
    static Int smaller_signed(Int x, Int y) {
        return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)};
    }
    static Int smaller_magnitude(Int x, Int y) {
        return {_mm256_min_epu32(x.a, y.a), _mm256_min_epu32(x.b, y.b)};
    }
    static Int shift_left_by(Int x, Int k) {
        return {_mm256_sllv_epi32(x.a, k.a), _mm256_sllv_epi32(x.b, k.b)};
    }
    static Int shift_right_by(Int x, Int k) {
        return {_mm256_srlv_epi32(x.a, k.a), _mm256_srlv_epi32(x.b, k.b)};
    }
    static Int shift_right_signed_by(Int x, Int k) {
        return {_mm256_srav_epi32(x.a, k.a), _mm256_srav_epi32(x.b, k.b)};
    }
    static Float divide(Float x, Float y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }

    static Mask equal(Int x, Int y) { return {_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)}; }
    static Mask at_least(Int x, Int y) { return equal(max_magnitude(x, y), x); }  // unsigned
    static Mask less(Int x, Int y) {                                              // signed
        return {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)};
    }
    static Mask is_zero(Int x) { return equal(x, Lanes::set(0u)); }
    static Mask either(Mask x, Mask y) { return bit_or(x, y); }
    static bool any(Mask x) { return !_mm256_testz_si256(_mm256_or_si256(x.a, x.b), _mm256_set1_epi32(-1)); }
    static uint32_t lanes_of(__m256i mask) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
    }
    static uint32_t count256(__m256i mask) {
        return static_cast<uint32_t>(__builtin_popcount(lanes_of(mask)));
    }
    static uint32_t count(Mask x) { return count256(x.a) + count256(x.b); }
    static Int add_where(Mask mask, Int x, Int y) { return add(x, bit_and(y, mask)); }

    static __m128i shuffle(const uint8_t (&shuffles)[256][16], __m256i mask, __m128i words) {
        const uint8_t* const shuffle = shuffles[lanes_of(mask)];
        return _mm_shuffle_epi8(words, _mm_load_si128(reinterpret_cast<const __m128i*>(shuffle)));
    }
    // The lanes of `mask` give their low halves to `out`, one after the other, where 32 bytes are written.
    static Int give_halves(Int x, Mask mask, uint16_t* out) {
        const Int low = bit_and(x, Lanes::set(0xFFFFu));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low.a, low.b), 0xD8);
        const __m128i a = shuffle(kHalfShuffles.pack, mask.a, _mm256_castsi256_si128(words));
        const __m128i b = shuffle(kHalfShuffles.pack, mask.b, _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), a);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + count256(mask.a)), b);
        const Int high = shift_right<16>(x);
        return {_mm256_blendv_epi8(x.a, high.a, mask.a), _mm256_blendv_epi8(x.b, high.b, mask.b)};
    }
    static __m256i take256(__m256i x, __m256i mask, const uint8_t* in) {
        const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
        const __m256i low = _mm256_cvtepu16_epi32(shuffle(kHalfShuffles.spread, mask, words));
        return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), low), mask);
    }
    // The opposite; 32 bytes are read.
    static Int take_halves(Int x, Mask mask, const uint8_t* in) {
        return {take256(x.a, mask.a, in), take256(x.b, mask.b, in + 2 * count256(mask.a))};
    }
};

}  // namespace
}  // namespace qsgd
