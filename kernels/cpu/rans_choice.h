// Which class a unit gets (docs/wire_format.md, section 11): whole numbers alone, the same for every
// processor.
#pragma once

#include "cpu/rans_tables.h"

namespace qsgd {
namespace {

// 2 * log2(x), rounded down, of x >= 1.
inline int32_t half_octaves(uint64_t x) {
    const int octave = 63 - __builtin_clzll(x);
    const uint64_t leading = octave >= 31 ? x >> (octave - 31) : x << (31 - octave);  // in [2^31, 2^32)
    return 2 * octave + (leading * leading >> 63);
}

inline uint32_t limited(int32_t x, int32_t low, int32_t high) {
    return static_cast<uint32_t>(x < low ? low : x > high ? high : x);
}

// The magnitude, times 1024, that the columns let expect of elements [begin, begin + length).
inline uint64_t expected_sum(const RansChoice& choice, uint64_t begin, uint64_t length) {
    const uint64_t first = begin % choice.columns, end = first + length;
    return end / choice.columns * choice.expected[choice.columns] + choice.expected[end % choice.columns] -
           choice.expected[first];
}

// The byte of a unit of elements [begin, begin + length) whose codes' magnitudes have this sum.
inline uint32_t choose_unit_byte(const RansChoice& choice, uint64_t sum, uint64_t begin, uint64_t length) {
    if (choice.mode == kOneClass) return 1;
    if (sum == 0) return 0;
    if (choice.mode == kUnitClasses) return limited(half_octaves(sum) - choice.base, 1, 15);
    // 19 / 16: a fourth root of two, to round to the nearest half octave.
    const uint64_t ratio = (19 * sum << 26) / expected_sum(choice, begin, length);
    return limited(ratio ? half_octaves(ratio) - 32 : 0, 1, 15);
}

}  // namespace
}  // namespace qsgd
