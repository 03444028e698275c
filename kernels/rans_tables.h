// The range-ANS coder's tables as the coders look them up, and the state of its streams.
#pragma once

#include "rans.h"

namespace qsgd {

// How the encoder tells units of different scales apart (docs/wire_format.md, section 11).
struct RansChoice {
    RansMode mode;
    uint8_t classes;
    uint32_t columns;          // elements in a row, if columns have classes
    int32_t base;              // half octaves of a unit of class 0
    const uint8_t* column_of;  // the columns' bytes, the first kRow of them once more at the end
    const uint64_t* expected;  // columns + 1 sums of the columns' expected magnitudes
};

struct RansEncoder {
    RansChoice choice;
    uint8_t shifts[kRansMaxClasses];
    uint8_t plain[kRansMaxClasses];  // the largest magnitude up to which no code is escaped or has low bits
    uint32_t intervals[kRansMaxClasses * kRansSymbols];  // frequency, and from bit 16 on the first slot
    float reciprocals[kRansMaxClasses * kRansSymbols];   // of the frequencies, a bit less
};

struct RansDecoder {
    RansMode mode;
    uint8_t classes;
    uint32_t columns;
    uint8_t shifts[kRansMaxClasses];
    const uint8_t* column_of;  // as above
    const uint32_t*
        slots;  // of each class: frequency, from bit 11 on the place in the interval, from 27 on the symbol
    const uint8_t* units;  // four bits each
};

QSGD_HD uint32_t unit_byte(const RansDecoder& d, uint64_t unit) {
    return d.mode == kOneClass ? 1 : d.units[unit / 2] >> (unit % 2 * 4) & 15;
}

// What an encoder looks up of class c.
QSGD_HD void fill_class(RansEncoder& e, uint32_t c, const RansTable& table) {
    e.shifts[c] = table.shift;
    e.plain[c] = 0;
    while (!table.shift && e.plain[c] < kRansTop && table.frequency[e.plain[c] + 1]) ++e.plain[c];
    for (uint32_t symbol = 0, start = 0; symbol < kRansSymbols; ++symbol) {
        const uint32_t f = rans_frequency(table, symbol), at = c * kRansSymbols + symbol;
        e.intervals[at] = start << 16 | f;
        // Less than the reciprocal by more than three roundings: quotients come out right or one too small.
        e.reciprocals[at] = f ? (1 - 0x1p-22f) / static_cast<float>(f) : 0;
        start += f;
    }
}

// `slots` has room for 1024 numbers.
QSGD_HD void fill_slots(const RansTable& table, uint32_t* slots) {
    for (uint32_t symbol = 0; symbol < kRansSymbols; ++symbol) {
        const uint32_t f = rans_frequency(table, symbol);
        for (uint32_t k = 0; k < f; ++k) *slots++ = symbol << 27 | k << 11 | f;
    }
}

struct alignas(64) RansEncodeStream {
    uint32_t states[16];
    uint16_t* out;
};

struct alignas(64) RansDecodeStream {
    uint32_t states[16];
    const uint8_t *in, *begin;  // words are read backwards
    uint32_t bad;
};

// A unit of 512 codes and its classes.
struct RansUnit {
    int16_t* codes;
    uint32_t byte;    // of the unit
    uint64_t column;  // of its first element
    // For encoders:
    bool plain;         // no code is escaped or has low bits
    const char* fetch;  // memory that is read soon, 64 bytes a row
};

}  // namespace qsgd
