// Sixteen 32-bit lanes as four vectors of 16 bytes in plain C++, for any processor: what SSE2, NEON and
// others have. avx512.h and avx2.h define the same names.
#pragma once

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "cpu/unroll.h"
#include "numeric.h"

namespace qsgd {
namespace {

struct Lanes {
    // GCC and Clang vectors: element-wise operators, lowered to the registers that exist.
    typedef uint32_t Uint4 __attribute__((vector_size(16)));
    typedef int32_t Int4 __attribute__((vector_size(16)));
    typedef float Float4 __attribute__((vector_size(16)));
    typedef uint64_t Long2 __attribute__((vector_size(16)));
    typedef double Double2 __attribute__((vector_size(16)));
    struct Int {
        Uint4 part[4];
    };
    struct Float {
        Float4 part[4];
    };
    struct Sum {
        Long2 part[4];
    };
    struct Doubles {
        Double2 part[8];
    };
    static constexpr int kRowsAtOnce = 2;
    static constexpr bool kRotates = false;  // in one instruction

    // The vector whose part k is part(k).
    template <class All, class Part>
    QSGD_INLINE static All each(Part part) {
        return {{part(0), part(1), part(2), part(3)}};
    }

    template <class Vector>
    static Vector load16(const void* p, int k) {
        Vector v;
        memcpy(&v, static_cast<const char*>(p) + 16 * k, sizeof v);
        return v;
    }
    static Int load(const uint32_t* p) {
        return each<Int>([=](int k) { return load16<Uint4>(p, k); });
    }
    static Int in_register(Int x) { return x; }  // there are too few
    static void store(uint32_t* p, Int v) { memcpy(p, &v, sizeof v); }
    static void store_low_bytes(int8_t* p, Int v) {
        for (int l = 0; l < 16; ++l) p[l] = static_cast<int8_t>(v.part[l / 4][l % 4]);
    }
    static void store_low_halves(int16_t* p, Int v) {
        for (int l = 0; l < 16; ++l) p[l] = static_cast<int16_t>(v.part[l / 4][l % 4]);
    }
    static Int load_halves(const int16_t* p) {  // with their signs
        uint32_t v[16];
        for (int l = 0; l < 16; ++l) v[l] = static_cast<uint32_t>(static_cast<int32_t>(p[l]));
        return load(v);
    }
    static Int load_bytes(const uint8_t* p) {
        uint32_t v[16];
        for (int l = 0; l < 16; ++l) v[l] = p[l];
        return load(v);
    }
    static Int set(uint32_t v) {
        return each<Int>([=](int) { return Uint4{v, v, v, v}; });
    }
    static Int bit_and(Int x, Int y) {
        return each<Int>([&](int k) { return x.part[k] & y.part[k]; });
    }
    static Int bit_or(Int x, Int y) {
        return each<Int>([&](int k) { return x.part[k] | y.part[k]; });
    }
    static Int or_masked(Int x, Int y, Int mask) { return bit_or(x, bit_and(y, mask)); }
    static Int add(Int x, Int y) {
        return each<Int>([&](int k) { return x.part[k] + y.part[k]; });
    }
    static Int multiply(Int x, Int y) {
        return each<Int>([&](int k) { return x.part[k] * y.part[k]; });
    }
    // Of numbers below 2^31.
    static Int max_magnitude(Int x, Int y) {
        return each<Int>([&](int k) {
            return reinterpret_cast<Int4>(x.part[k]) > reinterpret_cast<Int4>(y.part[k]) ? x.part[k]
                                                                                         : y.part[k];
        });
    }
    template <int K>
    static Int shift_left(Int x) {
        return each<Int>([&](int k) { return x.part[k] << K; });
    }
    template <int K>
    static Int shift_right(Int x) {
        return each<Int>([&](int k) { return x.part[k] >> K; });
    }
    template <int K>
    static Int shift_right_signed(Int x) {
        return each<Int>(
            [&](int k) { return reinterpret_cast<Uint4>(reinterpret_cast<Int4>(x.part[k]) >> K); });
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
        uint32_t m = 0;
        for (int l = 0; l < 16; ++l) m = x.part[l / 4][l % 4] > m ? x.part[l / 4][l % 4] : m;
        return m;
    }

    static Float set(float v) {
        return each<Float>([=](int) { return Float4{v, v, v, v}; });
    }
    static Float zero() { return Float{}; }
    static Float load(const float* p) {
        return each<Float>([=](int k) { return load16<Float4>(p, k); });
    }
    // Not inline: where GCC unrolls these loops first it makes no vectors of them.
    template <class To, class From, To (*convert)(From)>
    __attribute__((noinline)) static void convert16(const From* from, To* to) {
        for (int l = 0; l < 16; ++l) to[l] = convert(from[l]);
    }
    static Float load_float16(const uint16_t* p) {
        uint16_t halves[16];  // p may be odd
        float lanes[16];
        memcpy(halves, p, sizeof halves);
        convert16<float, uint16_t, float_from_float16>(halves, lanes);
        return load(lanes);
    }
    static Float load_bfloat16(const uint16_t* p) {
        uint16_t halves[16];
        float lanes[16];
        memcpy(halves, p, sizeof halves);
        for (int l = 0; l < 16; ++l) lanes[l] = float_from_bfloat16(halves[l]);
        return load(lanes);
    }
    static void store(float* p, Float v) { memcpy(p, &v, sizeof v); }
    static void stream(float* p, Float v) {
#ifdef __SSE2__
        for (int k = 0; k < 4; ++k) _mm_stream_ps(p + 4 * k, v.part[k]);
#else
        store(p, v);
#endif
    }
    static void store_float16(uint16_t* p, Float v) {
        uint16_t halves[16];
        float lanes[16];
        store(lanes, v);
        convert16<uint16_t, float, float16_from_float>(lanes, halves);
        memcpy(p, halves, sizeof halves);
    }
    static void store_bfloat16(uint16_t* p, Float v) {
        uint16_t halves[16];
        float lanes[16];
        store(lanes, v);
        convert16<uint16_t, float, bfloat16_from_float>(lanes, halves);
        memcpy(p, halves, sizeof halves);
    }
    static Int bits(Float x) {
        return each<Int>([&](int k) { return reinterpret_cast<Uint4>(x.part[k]); });
    }
    static Float keep(Float x, Int mask) {
        return each<Float>([&](int k) {
            return reinterpret_cast<Float4>(reinterpret_cast<Uint4>(x.part[k]) & mask.part[k]);
        });
    }
    // x in the lanes whose top bit is set in `signs`, else y.
    static Float where_negative(Int signs, Float x, Float y) {
        const Int mask = shift_right_signed<31>(signs);
        return each<Float>([&](int k) {
            return reinterpret_cast<Float4>((reinterpret_cast<Uint4>(x.part[k]) & mask.part[k]) |
                                            (reinterpret_cast<Uint4>(y.part[k]) & ~mask.part[k]));
        });
    }
    static Float multiply(Float x, Float y) {
        return each<Float>([&](int k) { return x.part[k] * y.part[k]; });
    }
    static Float add(Float x, Float y) {
        return each<Float>([&](int k) { return x.part[k] + y.part[k]; });
    }
    static Float4 clamp4(Float4 x, Float4 limit) {
#ifdef __SSE2__
        return _mm_max_ps(_mm_min_ps(x, limit), -limit);
#else
        const Float4 low = x < limit ? x : limit;
        return low > -limit ? low : -limit;
#endif
    }
    static Float clamp(Float x, Float limit) {
        return each<Float>([&](int k) { return clamp4(x.part[k], limit.part[k]); });
    }
    static Uint4 round4(Float4 x) {  // ties to even: the default rounding mode
#ifdef __SSE2__
        return reinterpret_cast<Uint4>(_mm_cvtps_epi32(x));
#else
        for (int l = 0; l < 4; ++l) x[l] = rintf(x[l]);
        return reinterpret_cast<Uint4>(__builtin_convertvector(x, Int4));
#endif
    }
    static Int round(Float x) {
        return each<Int>([&](int k) { return round4(x.part[k]); });
    }
    static Int truncate(Float x) {
        return each<Int>(
            [&](int k) { return reinterpret_cast<Uint4>(__builtin_convertvector(x.part[k], Int4)); });
    }
    static Float convert(Int x) {
        return each<Float>(
            [&](int k) { return __builtin_convertvector(reinterpret_cast<Int4>(x.part[k]), Float4); });
    }
    static Float canonical_nan(Float x) {
        return each<Float>([&](int k) {
            const Uint4 nan = Uint4{} + kNanBits;
            return x.part[k] == x.part[k] ? x.part[k] : reinterpret_cast<Float4>(nan);
        });
    }

    static Doubles zero_doubles() { return {}; }
    static void add_squares(Doubles& sum, Float x) {
        for (int k = 0; k < 8; ++k) {
            const Float4 four = x.part[k / 2];
            const Double2 two = {four[k % 2 * 2], four[k % 2 * 2 + 1]};
            sum.part[k] += two * two;
        }
    }
    // Adds the lanes that are not negative to one sum, the others to the other; a NaN to at least one.
    static void add_sides(Doubles& above, Doubles& below, Float x) {
        for (int k = 0; k < 8; ++k) {
            const Float4 four = x.part[k / 2];
            const Double2 two = {four[k % 2 * 2], four[k % 2 * 2 + 1]}, zero = {};
            above.part[k] += two < zero ? zero : two;
            below.part[k] += two < zero ? two : zero;
        }
    }
    static double fold(Doubles sum) {
        for (int h = 4; h > 0; h /= 2)
            for (int k = 0; k < h; ++k) sum.part[k] += sum.part[k + h];
        return sum.part[0][0] + sum.part[0][1];
    }

    static Sum load_sum(const uint64_t* p) {
        return each<Sum>([=](int k) { return load16<Long2>(p, k); });
    }
    static void store_sum(uint64_t* p, Sum sum) { memcpy(p, &sum, sizeof sum); }
    static Sum zero_sum() { return Sum{}; }
    static Sum first_key(uint64_t word) {
        return each<Sum>([=](int k) {
            const uint64_t first = word + 1 + 2 * static_cast<uint64_t>(k);
            return Long2{first * kGolden, (first + 1) * kGolden};
        });
    }
    static Sum next_key(Sum key) {
        return each<Sum>([&](int k) { return key.part[k] + 8 * kGolden; });
    }
    static Sum add_terms(Sum sum, Int words, Sum key) {
        return each<Sum>([&](int k) {
            const Long2 x = reinterpret_cast<Long2>(words.part[k]) ^ key.part[k];
            return sum.part[k] + (x + wide_multiply(x, x >> 32));
        });
    }
    static uint64_t total(Sum sum) {
        const Long2 two = (sum.part[0] + sum.part[1]) + (sum.part[2] + sum.part[3]);
        return two[0] + two[1];
    }

    static constexpr uint32_t kLookupBits = 0;  // no lookups: codes are converted
    template <int Bits>
    static Float lookup(Int, float);

    // Philox: 32-bit numbers in the low halves of 64-bit lanes, whose high halves are ignored.
    using Wide = Long2;
    static constexpr int kPairs = 4;  // of Wides, one for the even and one for the odd of four lanes
    static constexpr int kPairsAtOnce = 2;
    static Wide wide(uint32_t v) { return Wide{v, v}; }
    static Wide wide_lanes(uint32_t first) { return Wide{first, first + 2}; }
    static Wide wide_multiply(Wide x, Wide y) {
#ifdef __SSE2__
        return reinterpret_cast<Wide>(
            _mm_mul_epu32(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(y)));
#else
        return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu);
#endif
    }
    static Wide wide_high(Wide x) { return x >> 32; }
    static Wide wide_xor(Wide x, Wide y) { return x ^ y; }
    static Wide wide_xor(Wide x, Wide y, Wide z) { return x ^ (y ^ z); }
    static void store_joined(uint32_t* p, Wide even, Wide odd) {
        const Wide both = (even & 0xFFFFFFFFu) | odd << 32;
        memcpy(p, &both, sizeof both);
    }
};

}  // namespace
}  // namespace qsgd
