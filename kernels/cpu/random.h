// The random bits of a group of 256 elements (docs/wire_format.md, section 4).
#pragma once

#include "numeric.h"

namespace qsgd {
namespace {

constexpr uint64_t kGroup = 256;
constexpr int kGroupRows = 16;

class Random {
  public:
    Random(uint64_t seed, uint32_t rank, uint32_t tensor, uint32_t step)
        : key_(philox_key(seed, rank)), tensor_(tensor), step_(step) {
        for (int m = 0; m < 4; ++m) multiplier_[m] = Lanes::set(kMultipliers[m]);
    }

    // words[w] are the sixteen lanes' result words w for group g.
    inline __attribute__((always_inline)) void words(uint64_t group, Lanes::Int (&words)[4]) const {
        const uint64_t block = 16 * group;
        // Round 1 turns c0, c1 into scalars; round 2 turns c3 into one: both are the same in all lanes.
        const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * tensor_;
        const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ static_cast<uint32_t>(block >> 32) ^ key_.k0;
        const uint32_t c1 = static_cast<uint32_t>(p1);
        const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0;
        Lanes::Wide part[4][Lanes::kWides];
        for (int k = 0; k < Lanes::kWides; ++k)
            remaining_rounds(Lanes::wide_lanes(static_cast<uint32_t>(block), k), c1, p0, k, part);
        for (int w = 0; w < 4; ++w) words[w] = Lanes::join(part[w]);
    }

    // R for the row of a group that is served by `word` and multiplier M.
    template <int M>
    Lanes::Int bits(Lanes::Int word) const {
        return Lanes::shift_right<8>(M == 0 ? word : Lanes::multiply(word, multiplier_[M]));
    }

  private:
    inline __attribute__((always_inline)) void remaining_rounds(Lanes::Wide counter, uint32_t c1, uint64_t p0,
                                                                int k,
                                                                Lanes::Wide (&out)[4][Lanes::kWides]) const {
        using L = Lanes;
        const L::Wide m0 = L::wide(kPhiloxM0), m1 = L::wide(kPhiloxM1);
        uint32_t k0 = key_.k0, k1 = key_.k1;
        // Round 1: only the counter's block number differs between lanes.
        const L::Wide first = L::wide_multiply(counter, m0);
        L::Wide x2 = L::wide_xor(L::wide_high(first), L::wide(step_ ^ k1));
        L::Wide x3 = first;
        k0 += kPhiloxW0, k1 += kPhiloxW1;
        // Round 2.
        const L::Wide second = L::wide_multiply(x2, m1);
        L::Wide x0 = L::wide_xor(L::wide_high(second), L::wide(c1 ^ k0));
        L::Wide x1 = second;
        x2 = L::wide_xor(x3, L::wide(static_cast<uint32_t>(p0 >> 32) ^ k1));
        x3 = L::wide(static_cast<uint32_t>(p0));
        for (int round = 2; round < kPhiloxRounds; ++round) {
            k0 += kPhiloxW0, k1 += kPhiloxW1;
            const L::Wide a = L::wide_multiply(x0, m0), b = L::wide_multiply(x2, m1);
            x0 = L::wide_xor(L::wide_high(b), x1, L::wide(k0));
            x1 = b;
            x2 = L::wide_xor(L::wide_high(a), x3, L::wide(k1));
            x3 = a;
        }
        out[0][k] = x0, out[1][k] = x1, out[2][k] = x2, out[3][k] = x3;
    }

    PhiloxKey key_;
    uint32_t tensor_, step_;
    Lanes::Int multiplier_[4];
};

}  // namespace
}  // namespace qsgd
