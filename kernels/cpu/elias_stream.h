// What the readers of dense and sparse blocks of Elias' strings have in common.
#pragma once

#include "cpu/bits.h"
#include "cpu/elias_tables.h"
#include "cpu/jobs.h"

namespace qsgd {
namespace {

typedef int8_t Bytes8 __attribute__((vector_size(8)));
typedef int16_t Shorts8 __attribute__((vector_size(16)));

// A block that is being read.
class EliasStream {
  protected:
    static constexpr int kLookups = 4;  // with one peek
    static_assert(kLookups * CodesTable::kBits <= BitSource::kPeek, "");

    EliasStream(const BitSource& source, int16_t* codes, uint64_t elements, uint32_t levels)
        : source_(source), out_(codes), end_(codes + elements), levels_(levels) {}

    bool ended() const { return !bad_ && source_.ends_at(at_); }
    bool room(int lookups) const { return end_ - out_ >= CodesTable::kMost * lookups; }

    // Takes the codes that the table has for what comes next, if there is room; returns its sizes.
    QSGD_INLINE uint32_t take(const CodesTable& table, uint64_t& next) {
        const uint64_t k = next >> (64 - CodesTable::kBits);
        Bytes8 bytes;
        memcpy(&bytes, &table.codes[k], sizeof bytes);
        const Shorts8 codes = __builtin_convertvector(bytes, Shorts8);
        memcpy(out_, &codes, sizeof codes);
        const uint32_t sizes = table.sizes[k], bits = sizes % 16;
        next <<= bits, at_ += bits, out_ += sizes / 16 % 16;
        return sizes;
    }

    // A number up to `largest`, of at most 16 digits.
    QSGD_INLINE uint32_t take_number(uint64_t& next, uint32_t largest) {
        const Number number = first_number(next);
        bad_ |= !number.complete | (number.value > largest);
        next <<= number.length, at_ += number.length;
        return number.value;
    }

    // A number of more digits too; not 0 even where it is wrong.
    QSGD_INLINE uint32_t take_long(uint32_t largest) {
        const Number number = first_number(source_.peek(at_));
        at_ += number.length;
        if (__builtin_expect(number.complete, 1)) {
            bad_ |= number.value > largest;
            return number.value;
        }
        const uint32_t more = number.value;
        if (more >= kEliasDigits) return bad_ = true, 1;
        const uint64_t next = source_.peek(at_ - 1);  // from its leading digit on
        const auto value = static_cast<uint32_t>(next >> (63 - more));
        at_ += more + 1;
        bad_ |= (value > largest) | (static_cast<int64_t>(next << (more + 1)) < 0);
        return value;
    }
    QSGD_INLINE uint32_t take_gap() { return take_long(kLargestEliasBlock); }

    // Sign and magnitude of one of a sparse block's nonzeros.
    QSGD_INLINE int16_t take_code() {
        uint64_t next = source_.peek(at_);
        const auto negative = static_cast<int32_t>(next >> 63);
        next <<= 1, ++at_;
        const auto magnitude = static_cast<int32_t>(take_number(next, levels_));
        return static_cast<int16_t>((magnitude ^ -negative) + negative);
    }

    // The nonzeros of a sparse block.
    uint64_t take_nonzeros(uint64_t elements) {
        const uint64_t nonzeros = take_long(static_cast<uint32_t>(elements) + 1) - 1;
        return bad_ ? 0 : nonzeros;
    }

    BitSource source_;
    uint64_t at_ = 0;
    int16_t *out_, *end_;
    uint32_t levels_;
    bool bad_ = false;
};

}  // namespace
}  // namespace qsgd
