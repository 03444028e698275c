// Scalar arithmetic that docs/wire_format.md fixes, written once for host and device: bucket parameters, half
// types, Philox and the checksum's constants. Compile without contraction into fused multiply-add.
#pragma once

#include <stdint.h>
#include <string.h>

#include <cmath>

#ifdef __CUDACC__
#define QSGD_HD static __host__ __device__ inline
#else
// Internal linkage: one copy per instruction set, which the linker must not merge.
#define QSGD_HD __attribute__((unused)) static inline
#endif

namespace qsgd {

constexpr uint32_t kTinyBits = 0x17800000u;  // 2^-80: scales below are decoded and encoded rescaled
constexpr float kRescale = 0x1p64f;          // by this power of two
constexpr float kUnrescale = 0x1p-64f;       //
constexpr float kFractionOne = 0x1p24f;      // T = x * 2^24
constexpr uint32_t kNanBits = 0x7FC00000u;   // the canonical NaN
constexpr uint32_t kOneBits = 0x3F800000u;
constexpr uint32_t kInfBits = 0x7F800000u;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
constexpr uint64_t kSumBlock = 4096;  // elements a block of the sum of squares

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr int kSharing = 8;  // rows that use the same random words, each times its own multiplier
constexpr uint32_t kMultipliers[kSharing] = {0x00000001u, 0x0019660Du, 0x17385CA9u, 0xAF490A95u,
                                             0x0979E791u, 0xAA9D885Du, 0xBF69FAB9u, 0x6E587165u};

QSGD_HD float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

QSGD_HD uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Of x >= 1.
QSGD_HD int leading_zeros(uint64_t x) {
#ifdef __CUDA_ARCH__
    return __clzll(static_cast<long long>(x));
#else
    return __builtin_clzll(x);
#endif
}

QSGD_HD bool is_finite(float value) { return (bits_from_float(value) & kInfBits) != kInfBits; }
QSGD_HD bool is_finite(double value) { return value - value == 0; }

// Whether a frame may hold this scale: +0, positive and finite, or the canonical NaN.
QSGD_HD bool is_scale(uint32_t bits) { return bits < kInfBits || bits == kNanBits; }

// Of scales, by their bits and without branches: loops over them become vectors.
QSGD_HD uint32_t is_positive(float scale) { return bits_from_float(scale) - 1 < kInfBits - 1; }
QSGD_HD uint32_t is_tiny(float scale) { return bits_from_float(scale) - 1 < kTinyBits - 1; }
QSGD_HD float rescaled(float scale) {
    return scale * float_from_bits(kOneBits + (is_tiny(scale) << 29));
}  // 2^64

// What an element is multiplied by (after *rescale) to become a number in [-top, top], top being levels *
// 2^24.
QSGD_HD float inverse_step(float scale, float top) {
    const float m = rescaled(scale), inverse = top / m;
    const uint32_t next = inverse * m < top;
    return float_from_bits((bits_from_float(inverse) + next) * is_positive(scale));  // else every code is 0
}

// The value of code 1, still rescaled if is_tiny(scale).
QSGD_HD float grid_step(float scale, float levels) {
    const float step = rescaled(scale) / levels;
    const uint32_t overflows = bits_from_float(levels * step) == kInfBits;
    return float_from_bits(bits_from_float(step) - overflows);
}

// The scale of a bucket whose largest magnitude has these bits; NaN if that is not finite.
QSGD_HD float max_scale(uint32_t largest_bits) {
    return float_from_bits(largest_bits < kInfBits ? largest_bits : kNanBits);
}

// The scale of a bucket with this sum of squares: min(f32(sqrt(sum)), FLT_MAX), or NaN.
QSGD_HD float l2_scale(double sum) {
    if (!is_finite(sum)) return float_from_bits(kNanBits);
    const float root = static_cast<float>(sqrt(sum));
    return bits_from_float(root) == kInfBits ? float_from_bits(kInfBits - 1) : root;
}

// The mean that `count` numbers of this sum have, 0 if there are none: a scale of onebit.
QSGD_HD float mean_of(double sum, uint64_t count) {
    return count ? static_cast<float>(sum / static_cast<double>(count)) : 0;
}

// How the header has ||v||^2: NaN is canonical, and stands for all that is not finite.
QSGD_HD uint64_t canonical_bits(double sum) {
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return is_finite(sum) ? bits : 0x7FF8000000000000u;
}

QSGD_HD float float_from_bfloat16(uint16_t bits) {
    return float_from_bits(static_cast<uint32_t>(bits) << 16);
}

// condition ? a : b, of which GCC would make a branch and then no vectors of the loop around it.
QSGD_HD uint32_t select(bool condition, uint32_t a, uint32_t b) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (a & mask) | (b & ~mask);
}

QSGD_HD uint16_t bfloat16_from_float(float value) {
    const uint32_t bits = bits_from_float(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>(select((bits & 0x7FFFFFFFu) > kInfBits, 0x7FC0, rounded));
}

QSGD_HD float float_from_float16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7FFFu;
    // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal; exact.
    const uint32_t finite = bits_from_float(float_from_bits(magnitude << 13) * 0x1p112f);
    return float_from_bits(sign | finite | select(magnitude >= 0x7C00u, kInfBits, 0));
}

QSGD_HD uint16_t float16_from_float(float value) {
    const uint32_t bits = bits_from_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1) - 0x38000000u) >> 13;
    const uint32_t subnormal =
        bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;  // rounds at 2^-24
    const uint32_t finite = select(magnitude < 0x38800000u, subnormal, normal);
    const uint32_t number =
        sign | select(magnitude >= 0x477FF000u, 0x7C00, finite);  // 65520 and above: infinity
    return static_cast<uint16_t>(select(magnitude > kInfBits, 0x7E00, number));
}

struct PhiloxKey {
    uint32_t k0, k1;
};

QSGD_HD PhiloxKey philox_key(uint64_t seed, uint32_t rank) {
    uint64_t z = seed + (static_cast<uint64_t>(rank) + 1) * kGolden;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

// The checksum's number for 64-bit word k of a frame, and the word's term.
QSGD_HD uint64_t checksum_key(uint64_t k) { return (k + 1) * kGolden; }
QSGD_HD uint64_t keyed_term(uint64_t word, uint64_t key) {
    const uint64_t x = word ^ key;
    return (x & 0xFFFFFFFFu) * (x >> 32) + x;
}
QSGD_HD uint64_t checksum_term(uint64_t word, uint64_t k) { return keyed_term(word, checksum_key(k)); }

}  // namespace qsgd
