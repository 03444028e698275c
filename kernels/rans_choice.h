// How an encoder of rans chooses classes and tables (docs/wire_format.md, section 11): whole numbers alone,
// for host and device.
#pragma once

#include "rans_tables.h"

namespace qsgd {

// 2 * log2(x), rounded down, of x >= 1.
QSGD_HD int32_t half_octaves(uint64_t x) {
    const int octave = 63 - leading_zeros(x);
    const uint64_t leading = octave >= 31 ? x >> (octave - 31) : x << (31 - octave);  // in [2^31, 2^32)
    return 2 * octave + static_cast<int32_t>(leading * leading >> 63);
}

QSGD_HD uint32_t limited(int32_t x, int32_t low, int32_t high) {
    return static_cast<uint32_t>(x < low ? low : x > high ? high : x);
}

// ---- the sample ----

// Units whose codes are looked at before coding begins, of `units` that there are.
QSGD_HD uint64_t rans_sample_units(uint64_t units) {
    const uint64_t eighth = units / 8, most = eighth < 64 ? 64 : eighth > 512 ? 512 : eighth;
    return units < most ? units : most;
}

// Number k of `sampled` units: one of each of so many ranges, so that no period is met.
QSGD_HD uint64_t rans_sample_unit(uint64_t units, uint64_t sampled, uint64_t k) {
    const uint64_t each = units / sampled, more = units % sampled;
    const uint64_t begin = k * each + (k < more ? k : more), length = each + (k < more);
    return begin + static_cast<uint32_t>(k * 0x9E3779B1u) % length;
}

// ---- classes ----

// Whether a sample of so many units tells enough of each column.
QSGD_HD bool rans_columns_known(const qsgd_spec& spec, uint64_t sampled) {
    return spec.columns >= 16 && spec.count / 64 >= spec.columns && sampled * kUnit / 16 >= spec.columns;
}

// A column's mean magnitude times 1024, at least 1.
QSGD_HD uint64_t rans_column_mean(uint64_t sum, uint64_t count) {
    const uint64_t mean = (1024 * sum + 256) / count;
    return mean ? mean : 1;
}
QSGD_HD uint8_t rans_column_byte(uint64_t mean, uint64_t largest) {
    return static_cast<uint8_t>(limited(half_octaves(mean) - half_octaves(largest) + 24, 0, 31));
}

// The half octaves of a unit of class 0, from the largest sum of a unit's magnitudes.
QSGD_HD int32_t rans_base(uint64_t largest) { return largest ? half_octaves(largest) - 15 : 0; }

// The magnitude, times 1024, that the columns let expect of elements [begin, begin + length).
QSGD_HD uint64_t expected_sum(const RansChoice& choice, uint64_t begin, uint64_t length) {
    const uint64_t first = begin % choice.columns, end = first + length;
    return end / choice.columns * choice.expected[choice.columns] + choice.expected[end % choice.columns] -
           choice.expected[first];
}

// The byte of a unit of the tensor whose codes' magnitudes have this sum.
QSGD_HD uint32_t choose_unit_byte(const RansChoice& choice, uint64_t sum, uint64_t unit, uint64_t count) {
    if (choice.mode == kOneClass) return 1;
    if (sum == 0) return 0;
    if (choice.mode == kUnitClasses) return limited(half_octaves(sum) - choice.base, 1, 15);
    const uint64_t begin = unit * kUnit, left = count - begin;
    // 19 / 16: a fourth root of two, to round to the nearest half octave.
    const uint64_t ratio = (19 * sum << 26) / expected_sum(choice, begin, left < kUnit ? left : kUnit);
    return limited(ratio ? half_octaves(ratio) - 32 : 0, 1, 15);
}

// ---- tables ----

// A class's elements in the sample.
struct RansCounts {
    uint32_t of[kRansTop + 2];  // magnitudes after the shift; the last: those that are escaped
    uint32_t shift;
    uint64_t beyond;  // sum of the magnitudes that are escaped without a shift
};

// Where a code is counted.
QSGD_HD uint32_t rans_counted_as(int32_t code, uint32_t shift) {
    const int32_t number = rans_number(code, shift), magnitude = number < 0 ? -number : number;
    return static_cast<uint32_t>(magnitude <= kRansTop ? magnitude : kRansTop + 1);
}

QSGD_HD uint32_t rans_counted(const RansCounts& counts) {
    uint32_t elements = 0;
    for (int m = 0; m <= kRansTop + 1; ++m) elements += counts.of[m];
    return elements;
}

// The shift for what was counted without one: if there is one, all are to be counted once more.
QSGD_HD uint32_t choose_rans_shift(const RansCounts& counts) {
    const uint64_t elements = rans_counted(counts);
    uint64_t magnitude = counts.beyond;
    for (uint32_t m = 0; m <= kRansTop; ++m) magnitude += static_cast<uint64_t>(m) * counts.of[m];
    uint32_t shift = 0;
    while (elements && shift < kRansMaxShift && magnitude >= 4 * elements << shift) ++shift;
    return shift;
}

// A frequency for `count` of `elements` that `each` symbols share.
QSGD_HD uint16_t rans_share(uint32_t count, uint32_t each, uint32_t elements, bool possible) {
    const uint32_t f = (2 * kRansOne * count + each * elements) / (2 * each * elements);
    return static_cast<uint16_t>(f == 0 && possible ? 1 : f);
}

// The table for what was counted in a sample, or in all there is (`complete`): then what does not occur needs
// no frequency.
QSGD_HD void choose_rans_table(const RansCounts& counts, uint32_t levels, bool complete, RansTable& t) {
    const uint32_t elements = rans_counted(counts), escaped = counts.of[kRansTop + 1];
    for (int m = 0; m <= kRansTop; ++m) t.frequency[m] = 0;
    t.top = 0, t.shift = static_cast<uint8_t>(counts.shift), t.escape = 1;
    if (elements > 0) {
        int seen = kRansTop;
        while (seen > 0 && counts.of[seen] == 0) --seen;
        const int32_t largest = rans_number(static_cast<int32_t>(levels), counts.shift);
        int most = seen;
        if (!complete && most < kRansTop && most < largest) ++most;
        t.escape = rans_share(escaped, 1, elements, complete ? escaped > 0 : most < largest);
        for (int m = 1; m <= most; ++m) {
            t.frequency[m] = rans_share(counts.of[m], 2, elements, !complete || counts.of[m]);
            if (t.frequency[m]) t.top = static_cast<uint8_t>(m);
        }
    }
    uint32_t others = t.escape;
    for (int m = 1; m <= kRansTop; ++m) others += 2u * t.frequency[m];
    while (others >= kRansOne) {  // zero is always possible
        int most_frequent = 1;
        for (int m = 2; m <= kRansTop; ++m)
            if (t.frequency[m] > t.frequency[most_frequent]) most_frequent = m;
        if (t.escape > t.frequency[most_frequent])
            --t.escape, --others;
        else
            --t.frequency[most_frequent], others -= 2;
    }
    t.frequency[0] = static_cast<uint16_t>(kRansOne - others);
}

// How many classes there are if these, a bit each, have elements.
QSGD_HD uint32_t rans_classes(uint32_t seen) {
    return seen ? 64 - static_cast<uint32_t>(leading_zeros(seen)) : 1;
}

// The class whose counts are class c's: the next one that has elements, if c may have some beyond the sample.
QSGD_HD uint32_t rans_class_like(uint32_t c, uint32_t seen, bool complete) {
    const uint32_t later = seen >> c << c, lowest = later & (0 - later);
    return complete || later == 0 ? c : 63 - static_cast<uint32_t>(leading_zeros(lowest));
}

// ---- costs, in 256ths of a bit ----

// log2(x) in 256ths, rounded down.
QSGD_HD uint32_t log2_256(uint32_t x) {
    const int octave = 63 - leading_zeros(x);
    uint32_t result = static_cast<uint32_t>(octave);
    uint64_t m = static_cast<uint64_t>(x) << (31 - octave);
    for (int bit = 0; bit < 8; ++bit) {
        m = m * m >> 31;
        result = result << 1 | static_cast<uint32_t>(m >> 32);
        m >>= m >> 32;
    }
    return result;
}

// Of the elements of a class.
QSGD_HD uint64_t rans_cost(const RansCounts& counts, const RansTable& t) {
    uint64_t cost = static_cast<uint64_t>(256 * t.shift) * rans_counted(counts);
    for (int m = 0; m <= kRansTop; ++m)
        if (counts.of[m])
            cost += static_cast<uint64_t>(counts.of[m]) * (256 * kRansBits - log2_256(t.frequency[m]));
    const uint64_t escaped = counts.of[kRansTop + 1];
    return escaped ? cost + escaped * (256 * kRansBits - log2_256(t.escape) + 256u * (16 - t.shift)) : cost;
}

// Of a sample's share of the `bytes` before the streams' lengths.
QSGD_HD uint64_t rans_head_cost(uint64_t bytes, uint64_t units, uint64_t sampled) {
    return 256 * 8 * bytes / units * sampled;
}

// The cheapest mode, of the first `modes` of all.
QSGD_HD RansMode choose_rans_mode(const uint64_t* costs, uint32_t modes) {
    const RansMode best = costs[kUnitClasses] < costs[kOneClass] ? kUnitClasses : kOneClass;
    const bool columns = modes > kColumnClasses && costs[kColumnClasses] < costs[best] - costs[best] / 64;
    return columns ? kColumnClasses : best;
}

}  // namespace qsgd
