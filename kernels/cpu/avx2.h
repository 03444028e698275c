// Sixteen 32-bit lanes in two AVX2 registers. avx512.h and baseline.h define the same names.
#pragma once

#include <immintrin.h>

#include "numeric.h"

namespace qsgd {
namespace {

struct Lanes {
    struct Int {
        __m256i a, b;
    };
    struct Float {
        __m256 a, b;
    };
    struct Sum {
        __m256i a, b;
    };
    struct Doubles {
        __m256d part[4];
    };
    static constexpr int kRowsAtOnce = 4;
    static constexpr bool kRotates = false;  // in one instruction

    static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static Int load(const uint32_t* p) { return {load256(p), load256(p + 8)}; }
    static Int in_register(Int x) { return x; }  // there are too few
    static void store(uint32_t* p, Int v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.b);
    }
    static void store_low_bytes(int8_t* p, Int v) {
        const Int low = bit_and(v, set(0xFFu));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low.a, low.b), 0xD8);
        const __m128i bytes =
            _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    }
    static void store_low_halves(int16_t* p, Int v) {
        const Int low = bit_and(v, set(0xFFFFu));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm256_permute4x64_epi64(_mm256_packus_epi32(low.a, low.b), 0xD8));
    }
    static Int load_halves(const int16_t* p) {  // with their signs
        return {_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static Int load_bytes(const uint8_t* p) {
        return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static Int set(uint32_t v) {
        return {_mm256_set1_epi32(static_cast<int>(v)), _mm256_set1_epi32(static_cast<int>(v))};
    }
    static Int bit_and(Int x, Int y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
    static Int bit_or(Int x, Int y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
    static Int or_masked(Int x, Int y, Int mask) { return bit_or(x, bit_and(y, mask)); }
    static Int add(Int x, Int y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static Int multiply(Int x, Int y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
    static Int max_magnitude(Int x, Int y) {
        return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)};
    }
    template <int K>
    static Int shift_left(Int x) {
        return {_mm256_slli_epi32(x.a, K), _mm256_slli_epi32(x.b, K)};
    }
    template <int K>
    static Int shift_right(Int x) {
        return {_mm256_srli_epi32(x.a, K), _mm256_srli_epi32(x.b, K)};
    }
    template <int K>
    static Int shift_right_signed(Int x) {
        return {_mm256_srai_epi32(x.a, K), _mm256_srai_epi32(x.b, K)};
    }
    template <int K>
    static Int rotate_right(Int x) {
        return bit_or(shift_right<K>(x), shift_left<(32 - K) % 32>(x));
    }
    // Bits At .. At + Bits - 1 at the bottom, other bits above.
    template <int Bits, int At>
    static Int field(Int x) {
        return shift_right<At>(x);
    }
    static uint32_t largest(Int x) {
        __m256i m = _mm256_max_epu32(x.a, x.b);
        __m128i n = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
        n = _mm_max_epu32(n, _mm_shuffle_epi32(n, 0x4E));
        n = _mm_max_epu32(n, _mm_shuffle_epi32(n, 0xB1));
        return static_cast<uint32_t>(_mm_cvtsi128_si32(n));
    }

    static Float set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static Float zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static __m256 widen_float16(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Float load_float16(const uint16_t* p) { return {widen_float16(p), widen_float16(p + 8)}; }
    static __m256 widen_bfloat16(const uint16_t* p) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static Float load_bfloat16(const uint16_t* p) { return {widen_bfloat16(p), widen_bfloat16(p + 8)}; }
    static void store(float* p, Float x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }
    static void stream(float* p, Float x) {
        _mm256_stream_ps(p, x.a);
        _mm256_stream_ps(p + 8, x.b);
    }
    static void store_float16(uint16_t* p, Float x) {
        const auto out = reinterpret_cast<__m128i*>(p);
        _mm_storeu_si128(out, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
    }
    static __m256i round_bfloat16(__m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        return _mm256_srli_epi32(rounded, 16);
    }
    // A NaN in x is the canonical one, which rounds to itself.
    static void store_bfloat16(uint16_t* p, Float x) {
        const __m256i packed = _mm256_packus_epi32(round_bfloat16(x.a), round_bfloat16(x.b));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
    }
    static Int bits(Float x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
    static Float keep(Float x, Int mask) {
        return {_mm256_and_ps(x.a, _mm256_castsi256_ps(mask.a)),
                _mm256_and_ps(x.b, _mm256_castsi256_ps(mask.b))};
    }
    // x in the lanes whose top bit is set in `signs`, else y.
    static Float where_negative(Int signs, Float x, Float y) {
        return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(signs.a)),
                _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(signs.b))};
    }
    static Float multiply(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static Float add(Float x, Float y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static __m256 clamp256(__m256 x, __m256 limit) {
        const __m256 negative = _mm256_xor_ps(limit, _mm256_set1_ps(-0.0f));
        return _mm256_max_ps(_mm256_min_ps(x, limit), negative);
    }
    static Float clamp(Float x, Float limit) { return {clamp256(x.a, limit.a), clamp256(x.b, limit.b)}; }
    static Int round(Float x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
    static Int truncate(Float x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
    static Float convert(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static __m256 canonical256(__m256 x) {
        const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(kNanBits));
        return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    }
    static Float canonical_nan(Float x) { return {canonical256(x.a), canonical256(x.b)}; }

    static Doubles zero_doubles() {
        const __m256d z = _mm256_setzero_pd();
        return {{z, z, z, z}};
    }
    static void add_square(__m256d& sum, __m128 x) {  // squares of float32 are exact in float64
        const __m256d wide = _mm256_cvtps_pd(x);
        sum = _mm256_add_pd(sum, _mm256_mul_pd(wide, wide));
    }
    static void add_squares(Doubles& sum, Float x) {
        add_square(sum.part[0], _mm256_castps256_ps128(x.a));
        add_square(sum.part[1], _mm256_extractf128_ps(x.a, 1));
        add_square(sum.part[2], _mm256_castps256_ps128(x.b));
        add_square(sum.part[3], _mm256_extractf128_ps(x.b, 1));
    }
    static void add_side(__m256d& above, __m256d& below, __m128 x) {
        const __m256d zero = _mm256_setzero_pd(), wide = _mm256_cvtps_pd(x);
        above = _mm256_add_pd(above, _mm256_max_pd(zero, wide));  // of a NaN: the second
        below = _mm256_add_pd(below, _mm256_min_pd(zero, wide));
    }
    // Adds the lanes that are not negative to one sum, the others to the other; a NaN to at least one.
    static void add_sides(Doubles& above, Doubles& below, Float x) {
        add_side(above.part[0], below.part[0], _mm256_castps256_ps128(x.a));
        add_side(above.part[1], below.part[1], _mm256_extractf128_ps(x.a, 1));
        add_side(above.part[2], below.part[2], _mm256_castps256_ps128(x.b));
        add_side(above.part[3], below.part[3], _mm256_extractf128_ps(x.b, 1));
    }
    static double fold(const Doubles& sum) {
        const __m256d low = _mm256_add_pd(sum.part[0], sum.part[2]);
        const __m256d high = _mm256_add_pd(sum.part[1], sum.part[3]);
        const __m256d four = _mm256_add_pd(low, high);
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
    }

    static Sum load_sum(const uint64_t* p) { return {load256(p), load256(p + 4)}; }
    static void store_sum(uint64_t* p, Sum sum) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum.a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 4), sum.b);
    }
    static Sum zero_sum() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static __m256i keys(uint64_t k) {
        return _mm256_set_epi64x(
            static_cast<long long>((k + 4) * kGolden), static_cast<long long>((k + 3) * kGolden),
            static_cast<long long>((k + 2) * kGolden), static_cast<long long>((k + 1) * kGolden));
    }
    static Sum first_key(uint64_t word) { return {keys(word), keys(word + 4)}; }
    static Sum next_key(Sum key) {
        const __m256i step = _mm256_set1_epi64x(static_cast<long long>(8 * kGolden));
        return {_mm256_add_epi64(key.a, step), _mm256_add_epi64(key.b, step)};
    }
    static __m256i add_terms256(__m256i sum, __m256i words, __m256i key) {
        const __m256i x = _mm256_xor_si256(words, key);
        const __m256i product = _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32));
        return _mm256_add_epi64(_mm256_add_epi64(sum, x), product);
    }
    static Sum add_terms(Sum sum, Int words, Sum key) {
        return {add_terms256(sum.a, words.a, key.a), add_terms256(sum.b, words.b, key.b)};
    }
    static uint64_t total(Sum sum) {
        uint64_t part[4];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(part), _mm256_add_epi64(sum.a, sum.b));
        return part[0] + part[1] + part[2] + part[3];
    }

    // The value of a Bits-bit code, `step` being that of 1; the bits above the code are ignored.
    static constexpr uint32_t kLookupBits = 3;
    template <int Bits>
    static Float lookup(Int code, float step) {
        const __m256 ramp = Bits == 2 ? _mm256_setr_ps(0, 1, -2, -1, 0, 1, -2, -1)
                                      : _mm256_setr_ps(0, 1, 2, 3, -4, -3, -2, -1);
        const __m256 values = _mm256_mul_ps(ramp, _mm256_set1_ps(step));
        return {_mm256_permutevar8x32_ps(values, code.a), _mm256_permutevar8x32_ps(values, code.b)};
    }

    // Philox: 32-bit numbers in the low halves of 64-bit lanes, whose high halves are ignored.
    using Wide = __m256i;
    static constexpr int kPairs = 2;  // of Wides, one for the even and one for the odd of eight lanes
    static constexpr int kPairsAtOnce = 2;
    static Wide wide(uint32_t v) { return _mm256_set1_epi64x(v); }
    static Wide wide_lanes(uint32_t first) {  // first, first + 2, ...
        return _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(6, 4, 2, 0));
    }
    static Wide wide_multiply(Wide x, Wide y) { return _mm256_mul_epu32(x, y); }
    static Wide wide_high(Wide x) { return _mm256_srli_epi64(x, 32); }
    static Wide wide_xor(Wide x, Wide y) { return _mm256_xor_si256(x, y); }
    static Wide wide_xor(Wide x, Wide y, Wide z) { return wide_xor(x, wide_xor(y, z)); }
    static void store_joined(uint32_t* p, Wide even, Wide odd) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
    }
};

}  // namespace
}  // namespace qsgd
