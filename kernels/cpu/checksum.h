// The frame's checksum, eight words at a time (docs/wire_format.md, section 7).
#pragma once

#include "numeric.h"

namespace qsgd {
namespace {

// Adds up the terms of consecutive 64-byte groups as they are written or read.
struct RunningChecksum {
    Lanes::Sum sum = Lanes::zero_sum();
    Lanes::Sum key;
    explicit RunningChecksum(uint64_t first_word) : key(Lanes::first_key(first_word)) {}
    void add(Lanes::Int words) { sum = Lanes::add_terms(sum, words, take_key()); }
    Lanes::Sum take_key() {
        const Lanes::Sum taken = key;
        key = Lanes::next_key(key);
        return taken;
    }
};

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
