// Strings of bits in memory, the first bit of a byte being its most significant one.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/unroll.h"

namespace qsgd {
namespace {

// A string: the last `length` bits of `bits`.
struct BitString {
    uint64_t bits;
    uint32_t length;
    BitString then(BitString next) const { return {bits << next.length | next.bits, length + next.length}; }
};

// Writes strings one after the other. It may write seven bytes past the last.
class BitWriter {
  public:
    explicit BitWriter(uint8_t* out) : out_(out) {}

    static constexpr uint32_t kMost = 56;

    // At most kMost bits, the others being zero.
    void put(BitString s) {
        held_ = held_ << s.length | s.bits;
        count_ += s.length;
        const uint64_t word = __builtin_bswap64(held_ << 1 << (63 - count_));
        memcpy(out_, &word, sizeof word);
        out_ += count_ / 8;
        count_ %= 8;
    }

    // Where the next whole byte begins.
    uint8_t* end() const { return out_ + (count_ > 0); }

  private:
    uint8_t* out_;
    uint64_t held_ = 0;  // its last count_ bits are not part of a whole byte
    uint32_t count_ = 0;
};

// What can be read: a string of `bits` bits at `base`, behind which memory goes on up to byte `readable`.
struct BitSource {
    const uint8_t* base;
    uint64_t bits, readable;

    static constexpr int kPeek = 57;

    bool whole(uint64_t at) const { return at / 8 + 8 <= readable; }
    // At least kPeek bits from bit number `at` on; whole(at) must be true.
    uint64_t peek_whole(uint64_t at) const {
        uint64_t word;
        memcpy(&word, base + at / 8, sizeof word);
        return __builtin_bswap64(word) << at % 8;
    }
    QSGD_INLINE uint64_t peek(uint64_t at) const { return whole(at) ? peek_whole(at) : peek_part(at); }
    // The same anywhere: zeros beyond what can be read.
    uint64_t peek_part(uint64_t at) const {
        uint64_t word = 0;
        for (uint64_t k = at / 8; k < at / 8 + 8; ++k) word = word << 8 | (k < readable ? base[k] : 0);
        return word << at % 8;
    }
    // Whether a string that ends at bit number `at` ends where this one does, but for zeros in its last byte.
    bool ends_at(uint64_t at) const {
        if (at > bits || bits - at >= 8) return false;
        return at % 8 == 0 || (base[at / 8] & (0xFFu >> at % 8)) == 0;
    }
};

}  // namespace
}  // namespace qsgd
