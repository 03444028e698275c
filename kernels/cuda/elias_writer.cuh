// Elias' strings, and how a half-warp joins them (docs/wire_format.md, section 6).
#pragma once

#include "cuda/launch.cuh"
#include "elias.h"

namespace qsgd {

// The last `length` bits of `bits`.
struct BitString {
    uint32_t bits, length;
};

__device__ __forceinline__ BitString elias(const EliasWords& words, uint32_t k) {
    const uint32_t m = 31 - static_cast<uint32_t>(__clz(static_cast<int>(k)));
    return {(k + words.prefix[m]) << 1, words.length[m]};
}

// Puts strings one after the other into words that are 0, from bit number `at` on; others write before and
// behind.
class LaneWriter {
  public:
    __device__ LaneWriter(uint32_t* words, uint32_t at) : word_(words + at / 32), free_(32 - at % 32) {}

    // Of 1 to 31 bits.
    __device__ __forceinline__ void put(BitString s) {
        if (s.length <= free_) {
            free_ -= s.length;
            held_ |= s.bits << free_;
            return;
        }
        const uint32_t rest = s.length - free_;
        atomicOr(word_++, held_ | s.bits >> rest);
        free_ = 32 - rest;
        held_ = s.bits << free_;
    }
    __device__ __forceinline__ void finish() { atomicOr(word_, held_); }

  private:
    uint32_t* word_;
    uint32_t held_ = 0, free_;
};

// A half-warp's block: its last words in shared memory, those before in scratch memory. All lanes of a warp
// call its functions together.
class BlockWriter {
  public:
    __device__ BlockWriter(uint32_t* words, uint32_t* out) : words_(words), out_(out) {
        if (lane_of_half_warp() == 0) words_[0] = 0;
    }

    // Appends each lane's strings, for which `each` calls a function.
    template <class Each>
    __device__ __forceinline__ void append(Each each) {
        uint32_t mine = 0;
        each([&](BitString s) { mine += s.length; });
        const uint32_t behind = used_ + scan<kLanes>(mine, Sum());
        const uint32_t end = __shfl_sync(kAllLanes, behind, kLanes - 1, kLanes);
        for (uint32_t k = 1 + lane_of_half_warp(); k <= end / 32; k += kLanes) words_[k] = 0;
        __syncwarp();
        LaneWriter writer(words_, behind - mine);
        each([&](BitString s) { writer.put(s); });
        writer.finish();
        __syncwarp();
        flush(end);
    }

    // Returns the block's bytes.
    __device__ __forceinline__ uint32_t finish(bool here) {
        if (here && used_ && lane_of_half_warp() == 0) *out_ = in_order(words_[0]);
        return (written_ + used_ + 7) / 8;
    }

  private:
    // The first byte first.
    static __device__ __forceinline__ uint32_t in_order(uint32_t word) {
        return __byte_perm(word, 0, 0x0123);
    }

    // The whole words of so many bits go to scratch memory, what is left to the first word.
    __device__ __forceinline__ void flush(uint32_t bits) {
        const uint32_t whole = bits / 32, last = words_[whole];
        for (uint32_t k = lane_of_half_warp(); k < whole; k += kLanes) out_[k] = in_order(words_[k]);
        __syncwarp();
        if (lane_of_half_warp() == 0) words_[0] = last;
        out_ += whole, used_ = bits % 32, written_ += 32 * whole;
    }

    uint32_t* const words_;
    uint32_t* out_;
    uint32_t used_ = 0, written_ = 0;  // bits here and there
};

}  // namespace qsgd
