// The frame's checksum, eight words at a time (docs/wire_format.md, section 7).
#pragma once

#include "cpu/unroll.h"
#include "numeric.h"

namespace qsgd {
namespace {

// The keys of consecutive 64-byte groups.
struct Keys {
    Lanes::Sum next;
    explicit Keys(uint64_t first_word) : next(Lanes::first_key(first_word)) {}
    Lanes::Sum take() {
        const Lanes::Sum taken = next;
        next = Lanes::next_key(next);
        return taken;
    }
};

// Adds up the terms of consecutive 64-byte groups as they are written or read.
struct RunningChecksum {
    Lanes::Sum sum = Lanes::zero_sum();
    Keys keys;
    explicit RunningChecksum(uint64_t first_word) : keys(first_word) {}
    void add(Lanes::Int words) { sum = Lanes::add_terms(sum, words, keys.take()); }
};

// Adds the terms of some groups to one frame's eight partial sums in memory.
template <int First, int Last>
QSGD_INLINE void add_to_frame(uint64_t* sums, const Lanes::Int* words, const Lanes::Sum* keys) {
    Lanes::Sum sum = Lanes::load_sum(sums);
    unroll<First, Last>(
        [&](auto w) QSGD_INLINE_LAMBDA { sum = Lanes::add_terms(sum, words[w.value], keys[w.value]); });
    Lanes::store_sum(sums, sum);
}

uint64_t checksum(const uint8_t* words, uint64_t first_word, uint64_t count) {
    RunningChecksum running(first_word);
    uint64_t k = 0;
    for (; k + 8 <= count; k += 8) running.add(Lanes::load(reinterpret_cast<const uint32_t*>(words + 8 * k)));
    uint64_t total = Lanes::total(running.sum);
    for (; k < count; ++k) {
        uint64_t word;
        memcpy(&word, words + 8 * k, sizeof word);
        total += checksum_term(word, first_word + k);
    }
    return total;
}

}  // namespace
}  // namespace qsgd
