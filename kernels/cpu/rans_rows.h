// Rows of sixteen codes through sixteen range-ANS states, one after the other: for any processor, and for the
// rare rows that vectors do not do (docs/wire_format.md, section 6).
#pragma once

#include "rans_tables.h"

namespace qsgd {
namespace {

// The classes of sixteen elements, of which the first is in column `column`.
template <class Tables>
inline void row_classes(const Tables& t, uint32_t unit, uint64_t column, uint8_t* classes) {
    for (int l = 0; l < 16; ++l)
        classes[l] = static_cast<uint8_t>(
            rans_class(unit, t.columns ? t.column_of[column + static_cast<uint64_t>(l)] : 7, t.classes));
}

constexpr int kUnitRows = 32;

// The column of the next row's first element, of the one before, and of the last one in the unit; 0 without
// columns.
inline uint64_t next_column(uint64_t column, uint32_t columns) {
    return column + 16 < columns ? column + 16 : columns ? column + 16 - columns : 0;
}
inline uint64_t previous_column(uint64_t column, uint32_t columns) {
    return column >= 16 ? column - 16 : columns ? column + columns - 16 : 0;
}
inline uint64_t last_row_column(uint64_t column, uint32_t columns) {
    return columns ? (column + 16 * (kUnitRows - 1)) % columns : 0;
}

// Makes room for a number below 2^-room of all that fit, and appends it.
struct RowWriter {
    uint32_t* states;
    uint16_t* out;

    void make_room(int lane, uint32_t limit) {
        if (states[lane] < limit) return;
        *out++ = static_cast<uint16_t>(states[lane]);
        states[lane] >>= 16;
    }
    void push(int lane, uint32_t value, uint32_t bits) {
        make_room(lane, 1u << (31 - bits));
        states[lane] = states[lane] << bits | value;
    }
    void push_symbol(int lane, uint32_t interval) {
        const uint32_t f = interval & 0xFFFF;
        make_room(lane, f << (31 - kRansBits));
        states[lane] = (states[lane] / f << kRansBits) + states[lane] % f + (interval >> 16);
    }
};

inline uint16_t* encode_row(const RansEncoder& e, const uint8_t* classes, const int16_t* codes,
                            uint32_t* states, uint16_t* out) {
    RowWriter writer{states, out};
    const uint32_t* intervals[16];
    int32_t low[16];  // -1: escaped
    for (int l = 0; l < 16; ++l) {
        const uint32_t shift = e.shifts[classes[l]];
        const int32_t moved = codes[l] + (1 << shift >> 1), high = moved >> shift;
        const uint32_t* const table = e.intervals + classes[l] * kRansSymbols;
        intervals[l] = table + (high & (kRansSymbols - 1));
        low[l] = moved & ((1 << shift) - 1);
        if (high < -kRansTop || high > kRansTop || (*intervals[l] & 0xFFFF) == 0) {
            intervals[l] = table + kRansEscape;
            low[l] = -1;
        }
    }
    for (uint32_t half = 8;; half = 0) {
        for (int l = 0; l < 16; ++l)
            if (low[l] < 0) writer.push(l, static_cast<uint16_t>(codes[l]) >> half & 255, 8);
        if (half == 0) break;
    }
    for (int l = 0; l < 16; ++l)
        if (low[l] >= 0 && e.shifts[classes[l]])
            writer.push(l, static_cast<uint32_t>(low[l]), e.shifts[classes[l]]);
    for (int l = 0; l < 16; ++l) writer.push_symbol(l, *intervals[l]);
    return writer.out;
}

struct RowReader {
    RansDecodeStream& stream;

    // Refills the lanes of `mask`, the last of which was filled last.
    void fill(uint32_t mask) {
        for (int l = 15; l >= 0; --l)
            if (mask >> l & 1 && stream.states[l] < kRansLow) {
                uint16_t word = 0;
                if (stream.in == stream.begin)
                    stream.bad = 1;
                else
                    memcpy(&word, stream.in -= 2, 2);
                stream.states[l] = stream.states[l] << 16 | word;
            }
    }
    uint32_t pop(int lane, uint32_t bits) {
        const uint32_t value = stream.states[lane] & ((1u << bits) - 1);
        stream.states[lane] >>= bits;
        return value;
    }
};

inline void decode_row(const RansDecoder& d, const uint8_t* classes, RansDecodeStream& stream,
                       int16_t* codes) {
    RowReader reader{stream};
    int32_t symbols[16];
    uint32_t escaped = 0, low = 0;
    for (int l = 0; l < 16; ++l) {
        const uint32_t x = stream.states[l];
        const uint32_t slot = d.slots[classes[l] * kRansOne + (x & (kRansOne - 1))];
        stream.states[l] = (slot & 0x7FF) * (x >> kRansBits) + (slot >> 11 & (kRansOne - 1));
        symbols[l] = static_cast<int32_t>(slot) >> 27;
        if (symbols[l] < -kRansTop)
            escaped |= 1u << l;
        else if (d.shifts[classes[l]])
            low |= 1u << l;
    }
    reader.fill(0xFFFF);
    for (int l = 0; l < 16; ++l) {
        const uint32_t shift = low >> l & 1 ? d.shifts[classes[l]] : 0;
        codes[l] = static_cast<int16_t>(symbols[l] * (1 << shift) +
                                        static_cast<int32_t>(reader.pop(l, shift)) - (1 << shift >> 1));
    }
    reader.fill(low);
    if (!escaped) return;
    for (uint32_t half = 0; half < 16; half += 8) {
        for (int l = 0; l < 16; ++l)
            if (escaped >> l & 1) {
                const uint32_t before = half ? static_cast<uint8_t>(codes[l]) : 0;
                codes[l] = static_cast<int16_t>(before | reader.pop(l, 8) << half);
            }
        reader.fill(escaped);
    }
}

}  // namespace
}  // namespace qsgd
