// Strings of small codes in vector lanes: sixteen-bit lanes as GCC vectors, whose element-wise operators are
// lowered to the registers that exist.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/unroll.h"

namespace qsgd {
namespace {

// Vectors of 64 bytes would be no faster where there are such.
#ifdef __AVX2__
constexpr int kShorts = 16;
#else
constexpr int kShorts = 8;
#endif
constexpr int kQuads = kShorts / 4;
typedef int16_t Shorts __attribute__((vector_size(2 * kShorts)));
typedef uint32_t Pairs __attribute__((vector_size(2 * kShorts)));
typedef uint64_t Quads __attribute__((vector_size(2 * kShorts)));

inline Shorts load_shorts(const int16_t* p) {
    Shorts v;
    memcpy(&v, p, sizeof v);
    return v;
}

// A string of at most 15 bits in each lane, or, where `other` is not 0, none that fits.
struct LaneStrings {
    Shorts bits, lengths, other;
};

// The strings of four lanes joined; with a length that no string has if one of them is another.
struct QuadStrings {
    uint64_t bits[kQuads], lengths[kQuads];
};

QSGD_INLINE void join(const LaneStrings& lanes, QuadStrings& quads) {
    const Pairs bits = reinterpret_cast<Pairs>(lanes.bits), lengths = reinterpret_cast<Pairs>(lanes.lengths);
    const Pairs second = lengths >> 16;
    const Quads pairs = reinterpret_cast<Quads>(((bits & 0xFFFF) << second) | (bits >> 16));
    const Quads pair_lengths = reinterpret_cast<Quads>((lengths & 0xFFFF) + second);
    const Quads fourth = pair_lengths >> 32;
    const Quads all = ((pairs & 0xFFFFFFFF) << fourth) | (pairs >> 32);
    const Quads all_lengths =
        ((pair_lengths & 0xFFFFFFFF) + fourth) | reinterpret_cast<Quads>(lanes.other & 64);
    memcpy(quads.bits, &all, sizeof all);
    memcpy(quads.lengths, &all_lengths, sizeof all_lengths);
}

// Elias(k) for k up to 15; comparisons are -1 where true.
struct SmallElias {
    Shorts two, four, eight, bits;
    QSGD_INLINE explicit SmallElias(Shorts k)
        : two(k >= 2), four(k >= 4), eight(k >= 8), bits((k - 1 - two + (four & 16) + (eight & 32)) << 1) {}
    Shorts length() const { return (two & 2) + (four & 3) - eight + 1; }
    Shorts power_of_length() const { return (two & 6) + (four & 56) + (eight & 64) + 2; }
};

// Magnitudes up to `most`; others are 0, and said to be beyond.
struct SmallMagnitude {
    Shorts negative, value, beyond;
    QSGD_INLINE SmallMagnitude(Shorts code, int16_t most) : negative(code < 0) {
        value = (code ^ negative) - negative;
        beyond = value > most;
        value &= ~beyond;
    }
};

QSGD_INLINE LaneStrings dense_strings(Shorts code) {
    const SmallMagnitude magnitude(code, 14);
    const SmallElias number(magnitude.value + 1);
    // Twice Elias(1) is 0: without its sign it is the same.
    return {number.bits * 2 - magnitude.negative, number.length() - (code != 0), magnitude.beyond};
}

constexpr int kNearZeros = 7;  // so many codes before another are looked at

// Elias(gap) and a sign, for gaps up to kNearZeros. Elements before one are 0 where zeros[-1], zeros[-2], ...
// are -1.
struct SmallGap {
    Shorts bits, length, beyond;
    QSGD_INLINE SmallGap(const int16_t* zeros, Shorts negative) {
        Shorts run = load_shorts(zeros - 1), sum = run;
        const Shorts two = run;
        Shorts four = run;
        unroll<2, kNearZeros + 1>([&](auto k) QSGD_INLINE_LAMBDA {
            run &= load_shorts(zeros - k.value);
            sum += run;
            if (k.value == 3) four = run;
        });
        // Of gap g, 2 * Elias(g) is 4 * (g - 1), 4 more from 2 on and 64 more from 4 on.
        bits = (two & 4) + (four & 64) - negative - sum * 4;
        length = (two & 2) + (four & 3) + 2;
        beyond = run;
    }
};

QSGD_INLINE LaneStrings sparse_strings(Shorts code, const int16_t* zeros) {
    const SmallMagnitude magnitude(code, 15);
    const Shorts live = code != 0;
    const SmallGap gap(zeros, magnitude.negative);
    const SmallElias number(magnitude.value);
    return {(gap.bits * number.power_of_length() + number.bits) & live, (gap.length + number.length()) & live,
            (gap.beyond & live) | magnitude.beyond};
}

}  // namespace
}  // namespace qsgd
