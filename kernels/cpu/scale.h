// From partial results to a bucket's scale: the same serial code for every instruction set.
#pragma once

#include "cpu/jobs.h"

namespace qsgd {
namespace {

struct Statistics {
    uint32_t largest_bits = 0;  // bits of max |v|, for the max norm
    double sum = 0;             // of squares, for the l2 norm; neither is finite if an element is not
};

// The pairwise tree of section 3 over terms that come one after the other.
class PairwiseTree {
  public:
    void add(double term) {
        uint64_t n = count_++;
        int level = 0;
        for (; n & 1; n >>= 1) term = partial_[level++] + term;
        partial_[level] = term;
    }
    double total() const {
        bool any = false;
        double sum = 0;
        for (int level = 0; level < 64; ++level) {
            if (!(count_ >> level & 1)) continue;
            sum = any ? partial_[level] + sum : partial_[level];
            any = true;
        }
        return sum;
    }

  private:
    uint64_t count_ = 0;
    double partial_[64];
};

inline float scale_of(const Statistics& s, uint8_t norm) {
    return norm == QSGD_NORM_L2 ? l2_scale(s.sum) : max_scale(s.largest_bits);
}

// The two scales of a onebit bucket of this length to `out`.
inline void write_means(const Sides& s, uint64_t length, void* out) {
    const bool finite = is_finite(s.positive) && is_finite(s.negative);
    const float nan = float_from_bits(kNanBits);
    const float means[2] = {finite ? mean_of(s.positive, length - s.negatives) : nan,
                            finite ? mean_of(s.negative, s.negatives) : nan};
    memcpy(out, means, sizeof means);
}

// The sides of a bucket from those of its sum blocks, one after the other.
class SidesTree {
  public:
    void add(const Sides& block) {
        positive_.add(block.positive), negative_.add(block.negative);
        negatives_ += block.negatives;
    }
    Sides total() const { return {positive_.total(), negative_.total(), negatives_}; }

  private:
    PairwiseTree positive_, negative_;
    uint64_t negatives_ = 0;
};

}  // namespace
}  // namespace qsgd
