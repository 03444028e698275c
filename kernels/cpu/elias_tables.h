// What the next bits of an Elias string say: one number, or several codes at once.
#pragma once

#include "elias.h"

namespace qsgd {
namespace {

// The first number of a string: after `skip` bits, the last of them its leading digit, come `digits` more
// ones and then a bit 0, or 1 if that was not the number but one less than the digits of another.
struct NumberShape {
    uint8_t skip, digits;
};

struct NumberTable {
    static constexpr int kBits = 7;
    NumberShape shapes[1 << kBits] = {};
    constexpr NumberTable() {
        for (uint32_t w = 0; w < 1 << kBits; ++w) shapes[w] = shape(w);
    }

  private:
    static constexpr uint32_t bits(uint32_t w, uint32_t at, uint32_t count) {
        return w >> (kBits - at - count) & ((1u << count) - 1);
    }
    static constexpr NumberShape shape(uint32_t w) {
        if (bits(w, 0, 1) == 0) return {0, 0};
        if (bits(w, 2, 1) == 0) return {1, 1};
        const uint32_t second = bits(w, 0, 2), third = bits(w, 2, second + 1);
        if (bits(w, 3 + second, 1) == 0) return {3, static_cast<uint8_t>(second)};
        return {static_cast<uint8_t>(4 + second), static_cast<uint8_t>(third)};
    }
};
constexpr NumberTable kNumberTable;

struct Number {
    uint32_t value, length;
    bool complete;  // else `value` is one less than the digits of a number of more than 16
};

// Of a string's next bits, the first as the most significant.
inline constexpr Number first_number(uint64_t next) {
    const NumberShape shape = kNumberTable.shapes[next >> (64 - NumberTable::kBits)];
    const uint32_t digits = shape.digits, end = shape.skip + digits;
    const uint64_t value = 1ull << digits | next << shape.skip >> 1 >> (63 - digits);
    return {static_cast<uint32_t>(value), end + 1u, static_cast<int64_t>(next << end) >= 0};
}

// The codes that the next kBits bits of a block hold whole, at most kMost.
struct CodesTable {
    static constexpr int kBits = 12, kMost = 8, kNonzeros = 4;
    static constexpr uint32_t kLargest = 30;  // magnitude in it
    uint64_t codes[1 << kBits] = {};          // a signed byte each, zeros behind them
    uint16_t sizes[1 << kBits] = {};          // bits, 16 * codes, 256 * nonzeros; 0 if there is none

    constexpr explicit CodesTable(bool sparse) {
        for (uint32_t w = 0; w < 1 << kBits; ++w) fill(w, sparse);
    }

  private:
    constexpr void fill(uint32_t w, bool sparse) {
        uint32_t at = 0, count = 0, nonzeros = 0;
        for (;;) {
            const uint64_t next = static_cast<uint64_t>(w) << (64 - kBits);
            uint32_t used = at, zeros = 0;
            if (sparse) {
                const Number gap = first_number(next << used);
                zeros = gap.value - 1, used += gap.length + 1;
                if (used >= kBits) break;
            }
            const Number number = first_number(next << used);
            const uint32_t magnitude = number.value - !sparse;
            const uint32_t sign_at = sparse ? used - 1 : used + number.length;
            used += number.length + (!sparse && magnitude > 0);
            if (used > kBits || count + zeros + 1 > kMost || !number.complete) break;
            const bool negative = magnitude > 0 && (w >> (kBits - 1 - sign_at) & 1);
            const uint64_t code = (negative ? 0u - magnitude : magnitude) & 0xFF;
            codes[w] |= code << 8 * (count + zeros);
            count += zeros + 1, nonzeros += magnitude > 0, at = used;
        }
        sizes[w] = static_cast<uint16_t>(at | count << 4 | nonzeros << 8);
    }
};

constexpr CodesTable kDenseTable(false), kSparseTable(true);

}  // namespace
}  // namespace qsgd
