// Sixteen 32-bit lanes in plain C++ for any processor; the compiler makes of it what the machine has.
// avx512.h and avx2.h define the same names.
#pragma once

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "numeric.h"

// Sixteen-lane vectors are passed inside this file only, so that their calling convention does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace qsgd {
namespace {

struct Lanes {
    // GCC and Clang vectors: element-wise operators, lowered to the registers that exist.
    typedef uint32_t Int __attribute__((vector_size(64)));
    typedef int32_t Signed __attribute__((vector_size(64)));
    typedef float Float __attribute__((vector_size(64)));
    typedef uint64_t Sum __attribute__((vector_size(64)));
    struct Doubles {
        double lane[16];
    };
    static constexpr int kRowsAtOnce = 4;

    static Int load(const uint32_t* p) {
        Int v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(uint32_t* p, const Int& v) { memcpy(p, &v, sizeof v); }
    static void store_low_bytes(int8_t* p, const Int& v) {
        for (int l = 0; l < 16; ++l) p[l] = static_cast<int8_t>(v[l]);
    }
    static Int load_bytes(const int8_t* p) {
        Int v;
        for (int l = 0; l < 16; ++l) v[l] = static_cast<uint32_t>(static_cast<int32_t>(p[l]));
        return v;
    }
    static Int set(uint32_t v) { return Int{} + v; }
    static Int bit_and(const Int& x, const Int& y) { return x & y; }
    static Int bit_or(const Int& x, const Int& y) { return x | y; }
    static Int or_masked(const Int& x, const Int& y, const Int& mask) { return x | (y & mask); }
    static Int add(const Int& x, const Int& y) { return x + y; }
    static Int multiply(const Int& x, const Int& y) { return x * y; }
    static Int max_unsigned(const Int& x, const Int& y) { return x > y ? x : y; }
    template <int K>
    static Int shift_left(const Int& x) {
        return x << K;
    }
    template <int K>
    static Int shift_right(const Int& x) {
        return x >> K;
    }
    template <int K>
    static Int shift_right_signed(const Int& x) {
        return reinterpret_cast<Int>(reinterpret_cast<Signed>(x) >> K);
    }
    static uint32_t largest(const Int& x) {
        uint32_t m = 0;
        for (int l = 0; l < 16; ++l) m = x[l] > m ? x[l] : m;
        return m;
    }

    static Float set(float v) {
        Float x;
        for (int l = 0; l < 16; ++l) x[l] = v;
        return x;
    }
    static Float zero() { return Float{}; }
    static Float load(const float* p) {
        Float v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static Float load_float16(const uint16_t* p) {
        Float v;
        for (int l = 0; l < 16; ++l) v[l] = float_from_float16(p[l]);
        return v;
    }
    static Float load_bfloat16(const uint16_t* p) {
        Float v;
        for (int l = 0; l < 16; ++l) v[l] = float_from_bfloat16(p[l]);
        return v;
    }
    static void store(float* p, const Float& v) { memcpy(p, &v, sizeof v); }
    static void stream(float* p, const Float& v) { store(p, v); }
    static void store_float16(uint16_t* p, const Float& v) {
        for (int l = 0; l < 16; ++l) p[l] = float16_from_float(v[l]);
    }
    static void store_bfloat16(uint16_t* p, const Float& v) {
        for (int l = 0; l < 16; ++l) p[l] = bfloat16_from_float(v[l]);
    }
    static Int bits(const Float& x) { return reinterpret_cast<Int>(x); }
    static Float multiply(const Float& x, const Float& y) { return x * y; }
    static Float add(const Float& x, const Float& y) { return x + y; }
    static Float clamp(const Float& x, const Float& limit) {
        const Float low = x < limit ? x : limit;
        return low > -limit ? low : -limit;
    }
    static Int round(const Float& x) {  // ties to even: the default rounding mode
        Int v;
#ifdef __SSE2__
        for (int k = 0; k < 16; k += 4) {
            const __m128i four = _mm_cvtps_epi32(_mm_setr_ps(x[k], x[k + 1], x[k + 2], x[k + 3]));
            memcpy(reinterpret_cast<char*>(&v) + 4 * k, &four, sizeof four);
        }
#else
        for (int l = 0; l < 16; ++l) v[l] = static_cast<uint32_t>(static_cast<int32_t>(lrintf(x[l])));
#endif
        return v;
    }
    static Float convert(const Int& x) { return __builtin_convertvector(reinterpret_cast<Signed>(x), Float); }
    static Float canonical_nan(const Float& x) {
        const Int canonical = set(kNanBits);
        return x == x ? x : reinterpret_cast<Float>(canonical);
    }

    static Doubles zero_doubles() { return {}; }
    static void add_squares(Doubles& sum, const Float& x) {
        for (int l = 0; l < 16; ++l) sum.lane[l] += static_cast<double>(x[l]) * static_cast<double>(x[l]);
    }
    static double fold(Doubles sum) {
        for (int h = 8; h > 0; h /= 2)
            for (int l = 0; l < h; ++l) sum.lane[l] += sum.lane[l + h];
        return sum.lane[0];
    }

    static Sum zero_sum() { return Sum{}; }
    static Sum first_key(uint64_t word) {
        Sum key;
        for (int l = 0; l < 8; ++l) key[l] = (word + 1 + static_cast<uint64_t>(l)) * kGolden;
        return key;
    }
    static Sum next_key(const Sum& key) { return key + 8 * kGolden; }
    static Sum add_terms(const Sum& sum, const Int& words, const Sum& key) {
        const Sum x = reinterpret_cast<Sum>(words) ^ key;
        return sum + x + (x & 0xFFFFFFFFu) * (x >> 32);
    }
    static uint64_t total(const Sum& sum) {
        uint64_t t = 0;
        for (int l = 0; l < 8; ++l) t += sum[l];
        return t;
    }

    template <int Bits>
    struct Table {
        static constexpr bool kLookup = false;
        explicit Table(const float*) {}
        Float operator()(const Int&) const { return zero(); }
    };

    using Wide = Sum;
    static constexpr int kWides = 2;
    static Wide wide(uint32_t v) { return Wide{} + v; }
    static Wide wide_lanes(uint32_t base, int k) {
        Wide v;
        for (int l = 0; l < 8; ++l) v[l] = base + static_cast<uint32_t>(2 * l + k);
        return v;
    }
    static Wide wide_multiply(const Wide& x, const Wide& y) { return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu); }
    static Wide wide_high(const Wide& x) { return x >> 32; }
    static Wide wide_xor(const Wide& x, const Wide& y) { return x ^ y; }
    static Wide wide_xor(const Wide& x, const Wide& y, const Wide& z) { return x ^ y ^ z; }
    static Int join(const Wide* parts) {
        return reinterpret_cast<Int>((parts[0] & 0xFFFFFFFFu) | (parts[1] << 32));
    }
};

}  // namespace
}  // namespace qsgd
