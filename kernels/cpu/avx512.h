// Sixteen 32-bit lanes in one AVX-512 register. avx2.h and baseline.h define the same names.
#pragma once

#include <immintrin.h>

#include "cpu/unroll.h"
#include "numeric.h"

namespace qsgd {
namespace {

struct Lanes {
    using Int = __m512i;
    using Float = __m512;
    using Sum = __m512i;  // eight 64-bit sums
    struct Doubles {
        __m512d low, high;
    };
    static constexpr int kRowsAtOnce = 16;  // accumulator rows that fit the register file
    static constexpr bool kRotates = true;  // in one instruction

    static Int load(const uint32_t* p) { return _mm512_loadu_si512(p); }
    // Loaded once, not by every instruction that uses it: loads are what encoding has none of to spare.
    static Int in_register(Int a) {
        asm("" : "+v"(a));
        return a;
    }
    static void store(uint32_t* p, Int a) { _mm512_storeu_si512(p, a); }
    static void store_low_bytes(int8_t* p, Int a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
    }
    static void store_low_halves(int16_t* p, Int a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
    }
    static Int load_halves(const int16_t* p) {  // with their signs
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Int load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Int set(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
    static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
    static Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
    static Int or_masked(Int a, Int b, Int mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xF8); }
    static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
    static Int multiply(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
    static Int max_magnitude(Int a, Int b) { return _mm512_max_epu32(a, b); }
    template <int K>
    static Int shift_left(Int a) {
        return _mm512_slli_epi32(a, K);
    }
    template <int K>
    static Int shift_right(Int a) {
        return _mm512_srli_epi32(a, K);
    }
    template <int K>
    static Int shift_right_signed(Int a) {
        return _mm512_srai_epi32(a, K);
    }
    template <int K>
    static Int rotate_right(Int a) {
        return _mm512_ror_epi32(a, K);
    }
    // Bits At .. At + Bits - 1 at the bottom, other bits above. By multiplication within 16 bits where that
    // does: shifts and lookups compete for two of Zen 4's four ports, multiplications use the others.
    template <int Bits, int At>
    static Int field(Int a) {
        constexpr int half = At % 16;
        if constexpr (half == 0 || half + Bits > 16 || Bits > 4) return shift_right<At>(a);
        const Int low = At < 16 ? a : shift_right<16>(a);
        return _mm512_mulhi_epu16(low, _mm512_set1_epi16(static_cast<short>(1 << (16 - half))));
    }
    static uint32_t largest(Int a) { return _mm512_reduce_max_epu32(a); }

    static Float set(float a) { return _mm512_set1_ps(a); }
    static Float zero() { return _mm512_setzero_ps(); }
    static Float load(const float* p) { return _mm512_loadu_ps(p); }
    static Float load_float16(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Float load_bfloat16(const uint16_t* p) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
    static void stream(float* p, Float a) { _mm512_stream_ps(p, a); }
    static void store_float16(uint16_t* p, Float a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    }
    // A NaN in a is the canonical one, which rounds to itself.
    static void store_bfloat16(uint16_t* p, Float a) {
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
    static Int bits(Float a) { return _mm512_castps_si512(a); }
    static Float keep(Float a, Int mask) { return _mm512_castsi512_ps(bit_and(bits(a), mask)); }
    // a in the lanes whose top bit is set in `signs`, else b.
    static Float where_negative(Int signs, Float a, Float b) {
        return _mm512_mask_blend_ps(_mm512_movepi32_mask(signs), b, a);
    }
    static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    // The value of the smaller magnitude, with the sign of a: a limited to [-limit, limit].
    static Float clamp(Float a, Float limit) { return _mm512_range_ps(a, limit, 0x2); }
    static Int round(Float a) { return _mm512_cvtps_epi32(a); }
    static Int truncate(Float a) { return _mm512_cvttps_epi32(a); }
    static Float convert(Int a) { return _mm512_cvtepi32_ps(a); }
    // range_ps of two NaNs is the first, of a NaN and a number the number.
    static Float canonical_nan(Float a) {
        return _mm512_range_ps(_mm512_castsi512_ps(_mm512_set1_epi32(kNanBits)), a, 0x4);
    }

    static Doubles zero_doubles() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
    static void add_squares(Doubles& sum,
                            Float a) {  // squares of float32 are exact in float64: fma rounds once, too
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
        sum.low = _mm512_fmadd_pd(low, low, sum.low);
        sum.high = _mm512_fmadd_pd(high, high, sum.high);
    }
    // Adds the lanes that are not negative to one sum, the others to the other; a NaN to at least one.
    static void add_sides(Doubles& above, Doubles& below, Float a) {
        const __mmask16 negative = _mm512_movepi32_mask(bits(a));
        const auto low = static_cast<__mmask8>(negative), high = static_cast<__mmask8>(negative >> 8);
        const __m512d first = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
        const __m512d last = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
        above.low = _mm512_mask_add_pd(above.low, _knot_mask8(low), above.low, first);
        above.high = _mm512_mask_add_pd(above.high, _knot_mask8(high), above.high, last);
        below.low = _mm512_mask_add_pd(below.low, low, below.low, first);
        below.high = _mm512_mask_add_pd(below.high, high, below.high, last);
    }
    static double fold(const Doubles& sum) {
        const __m512d eight = _mm512_add_pd(sum.low, sum.high);
        const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
    }

    // Upper halves of 64-bit lanes in the lower ones. A shuffle: shifts are what the ports are short of.
    static Int high_to_low(Int a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }

    // Checksum: sums of terms of eight 64-bit words at a time.
    static Sum load_sum(const uint64_t* p) { return _mm512_loadu_si512(p); }
    static void store_sum(uint64_t* p, Sum a) { _mm512_storeu_si512(p, a); }
    static Sum zero_sum() { return _mm512_setzero_si512(); }
    static Sum first_key(uint64_t word) {  // (word + 1 + lane) * golden
        const __m512i lane = _mm512_set_epi64(8, 7, 6, 5, 4, 3, 2, 1);
        const __m512i k = _mm512_add_epi64(lane, _mm512_set1_epi64(static_cast<long long>(word)));
        return _mm512_mullo_epi64(k, _mm512_set1_epi64(static_cast<long long>(kGolden)));
    }
    static Sum next_key(Sum key) {
        return _mm512_add_epi64(key, _mm512_set1_epi64(static_cast<long long>(8 * kGolden)));
    }
    static Sum add_terms(Sum sum, Int words, Sum key) {
        const __m512i x = _mm512_xor_si512(words, key);
        const __m512i product = _mm512_mul_epu32(x, high_to_low(x));
        return _mm512_add_epi64(_mm512_add_epi64(sum, x), product);
    }
    static uint64_t total(Sum sum) { return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum)); }

    // The value of a Bits-bit code, `step` being that of 1; the bits above the code are ignored.
    static constexpr uint32_t kLookupBits = 5;
    template <int Bits>
    static Float lookup(Int code, float step) {
        const auto ramp = [](int first) QSGD_INLINE_LAMBDA {
            constexpr int half = 1 << (Bits - 1);
            const auto at = [=](int k) {
                return static_cast<float>((((first + k) & (2 * half - 1)) ^ half) - half);
            };
            return _mm512_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                                  at(10), at(11), at(12), at(13), at(14), at(15));
        };
        const Float low = multiply(ramp(0), set(step));
        if constexpr (Bits <= 4)
            return _mm512_permutexvar_ps(code, low);
        else
            return _mm512_permutex2var_ps(low, code, multiply(ramp(16), set(step)));
    }

    // Philox: 32-bit numbers in the low halves of 64-bit lanes, whose high halves are ignored.
    using Wide = __m512i;
    static constexpr int kPairs = 1;  // of Wides, one for the even and one for the odd lanes
    static constexpr int kPairsAtOnce = 1;
    static Wide wide(uint32_t a) { return _mm512_set1_epi64(a); }
    static Wide wide_lanes(uint32_t first) {  // first, first + 2, ...
        return _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0));
    }
    static Wide wide_multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
    static Wide wide_high(Wide a) { return high_to_low(a); }
    static Wide wide_xor(Wide a, Wide b) { return _mm512_xor_si512(a, b); }
    static Wide wide_xor(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
    static void store_joined(uint32_t* p, Wide even, Wide odd) {
        store(p, _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB));
    }
};

}  // namespace
}  // namespace qsgd
