// The random numbers of a lane's elements of a unit (docs/wire_format.md, section 4).
#pragma once

#include "cuda/elements.cuh"

namespace qsgd {

constexpr uint32_t kMultiplier = kMultipliers[1];  // the others are its powers

class Random {
  public:
    __device__ Random(uint64_t seed, uint32_t rank, uint32_t tensor, uint32_t step)
        : key_(philox_key(seed, rank)), tensor_(tensor), step_(step) {}

    // The four words of a lane.
    __device__ __forceinline__ void words(uint64_t unit, uint32_t lane, uint32_t (&out)[4]) const {
        const uint64_t block = kLanes * unit + lane;
        uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = tensor_,
                 c3 = step_;
        uint32_t k0 = key_.k0, k1 = key_.k1;
#pragma unroll
        for (int round = 0; round < kPhiloxRounds; ++round) {
            const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c0,
                           b = static_cast<uint64_t>(kPhiloxM1) * c2;
            c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(b);
            c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(a);
            k0 += kPhiloxW0, k1 += kPhiloxW1;
        }
        out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
    }

  private:
    PhiloxKey key_;
    uint32_t tensor_, step_;
};

// Calls body(row, 256 R + ...) for a lane's rows: R are the highest 24 bits. Those of a word are consecutive
// numbers of a linear congruential generator.
template <class Body>
__device__ __forceinline__ void each_random(const uint32_t (&words)[4], Body body) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        uint32_t number = words[w];
#pragma unroll
        for (int k = 0; k < kSharing; ++k) {
            body(kSharing * w + k, number);
            number *= kMultiplier;
        }
    }
}

}  // namespace qsgd
