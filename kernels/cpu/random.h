// The random words of units of 512 elements (docs/wire_format.md, section 4).
#pragma once

#include "cpu/jobs.h"
#include "cpu/unroll.h"
#include "numeric.h"

namespace qsgd {
namespace {

constexpr int kUnitWords = 64;  // four result words of sixteen lanes

class Random {
  public:
    Random(uint64_t seed, uint32_t rank, uint32_t tensor, uint32_t step) {
        const PhiloxKey key = philox_key(seed, rank);
        uint32_t k0 = key.k0, k1 = key.k1;
        const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * tensor;
        high_ = static_cast<uint32_t>(p1 >> 32) ^ k0;
        key1_[0] = Lanes::wide(k1 ^ step);
        for (int round = 1; round < kPhiloxRounds; ++round) {
            k0 += kPhiloxW0, k1 += kPhiloxW1;
            key0_[round] = Lanes::wide(round == 1 ? k0 ^ static_cast<uint32_t>(p1) : k0);
            key1_[round] = Lanes::wide(k1);
        }
    }

    // The words of unit number `unit`: word w of lane l is out[16 * w + l].
    QSGD_INLINE void words(uint64_t unit, uint32_t* out) const {
        const uint64_t block = 16 * unit;
        // Round 1 turns c0 into a scalar, whose product is the same in all lanes in round 2.
        const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * (high_ ^ static_cast<uint32_t>(block >> 32));
        const Lanes::Wide p0_high = Lanes::wide(static_cast<uint32_t>(p0 >> 32));
        const Lanes::Wide p0_low = Lanes::wide(static_cast<uint32_t>(p0));
        for (int lane = 0; lane < 16; lane += kAtOnce)
            counters(static_cast<uint32_t>(block) + lane, p0_high, p0_low, out + lane);
    }

  private:
    static constexpr int kPairLanes = 16 / Lanes::kPairs;
    static constexpr int kAtOnce =
        kPairLanes * Lanes::kPairsAtOnce;  // lanes: independent chains hide latencies

    // The words of kAtOnce counters.
    QSGD_INLINE void counters(uint32_t first, Lanes::Wide p0_high, Lanes::Wide p0_low, uint32_t* out) const {
        using L = Lanes;
        constexpr int kWides = 2 * L::kPairsAtOnce;  // even lanes, odd lanes of a pair
        const L::Wide m0 = L::wide(kPhiloxM0), m1 = L::wide(kPhiloxM1);
        L::Wide x0[kWides], x1[kWides], x2[kWides], x3[kWides];
        unroll<0, kWides>([&](auto i) QSGD_INLINE_LAMBDA {
            // Round 1: only the counter's block number differs between lanes.
            const L::Wide start = L::wide_lanes(first + i.value / 2 * kPairLanes + i.value % 2);
            const L::Wide product = L::wide_multiply(start, m0);
            // Round 2.
            x1[i.value] = L::wide_multiply(L::wide_xor(L::wide_high(product), key1_[0]), m1);
            x0[i.value] = L::wide_xor(L::wide_high(x1[i.value]), key0_[1]);
            x2[i.value] = L::wide_xor(p0_high, product, key1_[1]);
            x3[i.value] = p0_low;
        });
        unroll<2, kPhiloxRounds>([&](auto round) QSGD_INLINE_LAMBDA {
            const L::Wide k0 = key0_[round.value], k1 = key1_[round.value];
            unroll<0, kWides>([&](auto i) QSGD_INLINE_LAMBDA {
                const L::Wide a = L::wide_multiply(x0[i.value], m0), b = L::wide_multiply(x2[i.value], m1);
                x0[i.value] = L::wide_xor(L::wide_high(b), x1[i.value], k0);
                x1[i.value] = b;
                x2[i.value] = L::wide_xor(L::wide_high(a), x3[i.value], k1);
                x3[i.value] = a;
            });
        });
        unroll<0, L::kPairsAtOnce>([&](auto pair) QSGD_INLINE_LAMBDA {
            constexpr int kEven = 2 * pair.value, kLane = kPairLanes * pair.value;
            uint32_t* at = out + kLane;
            L::store_joined(at, x0[kEven], x0[kEven + 1]);
            L::store_joined(at + 16, x1[kEven], x1[kEven + 1]);
            L::store_joined(at + 32, x2[kEven], x2[kEven + 1]);
            L::store_joined(at + 48, x3[kEven], x3[kEven + 1]);
        });
    }

    uint32_t high_;                    // of c0 after round 1, without the counter's high half
    Lanes::Wide key0_[kPhiloxRounds];  // of each round; those of rounds 1 and 2 with what else is the same in
    Lanes::Wide key1_[kPhiloxRounds];  // all lanes and units
};

}  // namespace
}  // namespace qsgd
