// What the next bits of an Elias string say: one number, or several codes at once.
#pragma once

#include "elias.h"

namespace qsgd {
namespace {

constexpr NumberTable kNumberTable;

// Of a string's next bits, the first as the most significant.
inline constexpr Number first_number(uint64_t next) {
    return first_number(kNumberTable.shapes[next >> (64 - NumberTable::kBits)], next);
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
