// The model of the range-ANS coder (docs/wire_format.md, section 6): constants, tables and their checks, for
// host and device.
#pragma once

#include "frame.h"

namespace qsgd {

constexpr int kRansBits = 10;  // of a probability
constexpr uint32_t kRansOne = 1u << kRansBits;
constexpr uint32_t kRansLow = 1u << 15;  // states are in [2^15, 2^31)
constexpr int kRansSymbols = 32;         // numbers -15 .. 15, modulo 32, and the escape
constexpr int kRansTop = 15;
constexpr uint32_t kRansEscape = 16;
constexpr uint32_t kRansMaxClasses = 32, kRansMaxShift = 11;
constexpr uint64_t kRansHead = 8;         // bytes before the tables
constexpr uint64_t kRansStreams = 4;      // of a stretch, or one if it has
constexpr uint64_t kRansFewUnits = 128;   // fewer units than this
constexpr uint64_t kRansStateBytes = 64;  // of a stream, after its words
constexpr uint64_t kRansMostTable = 4 + 2 * kRansTop;
constexpr uint64_t kRansMostUnit = 4 * kUnit;  // bytes: a code takes 26 bits at most, and words are whole

enum RansMode : uint8_t { kOneClass = 0, kUnitClasses = 1, kColumnClasses = 2 };

// A class's table: the number of low bits that are sent as they are, and the frequencies, of 1024, of 0, of
// 1 and of -1, ..., and of the escape.
struct RansTable {
    uint8_t shift, top;
    uint16_t frequency[kRansTop + 1];
    uint16_t escape;
};

QSGD_HD uint64_t rans_table_bytes(const RansTable& t) { return 4 + 2 * static_cast<uint64_t>(t.top); }

// Frequency of symbol `symbol`, a number modulo 32 or the escape.
QSGD_HD uint32_t rans_frequency(const RansTable& t, uint32_t symbol) {
    if (symbol == kRansEscape) return t.escape;
    return t.frequency[symbol < kRansEscape ? symbol : kRansSymbols - symbol];
}

// A code's number, which its symbol stands for.
QSGD_HD int32_t rans_number(int32_t code, uint32_t shift) { return (code + (1 << shift >> 1)) >> shift; }

// The class of an element from its unit's and its column's byte.
QSGD_HD uint32_t rans_class(uint32_t unit, uint32_t column, uint32_t classes) {
    const uint32_t sum = unit + column;
    return sum < 8 ? 0 : sum - 8 < classes ? sum - 8 : classes - 1;
}
// The same in mode kUnitClasses.
QSGD_HD uint32_t rans_class(uint32_t unit, uint32_t classes) { return rans_class(unit, 7, classes); }

QSGD_HD uint64_t rans_streams(uint64_t units) { return units < kRansFewUnits ? 1 : kRansStreams; }

// Streams of a tensor.
QSGD_HD uint64_t rans_all_streams(uint64_t count) {
    if (count == 0) return 0;
    const uint64_t last = stretches_of(count) - 1;
    return kRansStreams * last + rans_streams(units_of_stretch(count, last));
}

// Bytes of a payload before the streams' lengths.
QSGD_HD uint64_t rans_head_bytes(RansMode mode, uint64_t table_bytes, uint64_t count, uint64_t columns) {
    const uint64_t units = mode == kOneClass ? 0 : ceil_div(ceil_div(count, kUnit), 2);
    return kRansHead + table_bytes + units + (mode == kColumnClasses ? columns : 0);
}

QSGD_HD uint64_t most_rans_head_bytes(uint64_t count, uint64_t columns) {
    return rans_head_bytes(kColumnClasses, kRansMaxClasses * kRansMostTable, count, columns);
}

// The most bytes of `streams` streams that share so many units.
QSGD_HD uint64_t most_stream_bytes(uint64_t units, uint64_t streams) {
    return kRansMostUnit * units + kRansStateBytes * streams;
}

// What a payload's first kRansHead bytes say of a tensor of `count` elements; whether an encoder may say so.
template <class Model>
QSGD_HD bool read_rans_head(const uint8_t* p, uint64_t count, Model& model) {
    const uint8_t mode = p[0];
    model.classes = p[1];
    memcpy(&model.columns, p + 4, 4);
    if (mode > kColumnClasses || model.classes < 1 || model.classes > kRansMaxClasses || p[2] || p[3])
        return false;
    model.mode = static_cast<RansMode>(mode);
    return mode == kColumnClasses ? model.columns >= 16 && model.columns <= count : model.columns == 0;
}

// Whether the table could be read and every symbol's interval lies in [0, 1024).
QSGD_HD bool read_rans_table(const uint8_t* p, uint64_t bytes, RansTable& t) {
    if (bytes < 4) return false;
    t = {};
    t.shift = p[0], t.top = p[1];
    if (t.shift > kRansMaxShift || t.top > kRansTop || bytes < rans_table_bytes(t)) return false;
    memcpy(t.frequency + 1, p + 2, 2 * static_cast<uint64_t>(t.top));
    memcpy(&t.escape, p + 2 + 2 * static_cast<uint64_t>(t.top), 2);
    uint32_t others = t.escape;
    for (int m = 1; m <= t.top; ++m) others += 2 * static_cast<uint32_t>(t.frequency[m]);
    if (others > kRansOne) return false;
    t.frequency[0] = static_cast<uint16_t>(kRansOne - others);
    return true;
}

QSGD_HD uint8_t* write_rans_table(const RansTable& t, uint8_t* p) {
    p[0] = t.shift, p[1] = t.top;
    memcpy(p + 2, t.frequency + 1, 2 * static_cast<uint64_t>(t.top));
    memcpy(p + 2 + 2 * static_cast<uint64_t>(t.top), &t.escape, 2);
    return p + rans_table_bytes(t);
}

}  // namespace qsgd
