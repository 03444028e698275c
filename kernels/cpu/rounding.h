// What rounding to s levels would add, summed over a sample of a tensor's rows (docs/theory.md).
#pragma once

#include "cpu/elements.h"
#include "cpu/statistics.h"

namespace qsgd {
namespace {

// Walks through a sample's rows, in order: one, at a place that meets no period, of every `stride`.
class SampledRows {
  public:
    SampledRows(const RowSample& sample, uint64_t first)
        : sample_(sample), per_bucket_(ceil_div(bucket_length(sample.spec, 0), 16)) {
        bucket = row_of(first) / per_bucket_;
        bucket_end_ = (bucket + 1) * per_bucket_;
    }

    // Goes to row number k; true if it lies in another bucket than the last.
    bool go_to(uint64_t k) {
        const uint64_t row = row_of(k), before = bucket;
        while (row >= bucket_end_) ++bucket, bucket_end_ += per_bucket_;
        const uint64_t in_bucket = 16 * (row + per_bucket_ - bucket_end_);
        begin = bucket * sample_.spec.bucket_size + in_bucket;
        length = bucket_length(sample_.spec, bucket) - in_bucket;
        return bucket != before;
    }

    // How many rows number k stands for.
    uint64_t stands_for(uint64_t k) const {
        const uint64_t left = sample_.rows - k * sample_.stride;
        return left < sample_.stride ? left : sample_.stride;
    }

    // Where row number k begins if buckets are whole rows, for prefetching.
    uint64_t about(uint64_t k) const { return 16 * row_of(k); }

    uint64_t bucket, begin, length;  // length: elements up to the bucket's end

  private:
    uint64_t row_of(uint64_t k) const {
        return k * sample_.stride + (static_cast<uint32_t>(k * 0x9E3779B1u) * stands_for(k) >> 32);
    }

    const RowSample& sample_;
    const uint64_t per_bucket_;
    uint64_t bucket_end_;  // in rows
};

template <class T>
double rounding_sum(const RowSample& sample, uint64_t first, uint64_t last, float levels) {
    const Lanes::Int magnitude = Lanes::set(0x7FFFFFFFu);
    const Lanes::Float one = Lanes::set(1.0f), minus_one = Lanes::set(-1.0f);
    const auto* values = element_at<typename T::Element>(sample.gradient, 0);
    SampledRows rows(sample, first);
    Lanes::Float sum = Lanes::zero(), rescale = one, inverse = one;
    float weight = 0;
    for (uint64_t k = first; k < last; ++k) {
        if (rows.go_to(k) || k == first) {
            const float scale = sample.scales[rows.bucket];
            weight = sample.weights[rows.bucket];
            rescale = Lanes::set(is_tiny(scale) ? kRescale : 1.0f);
            inverse = Lanes::set(inverse_step(scale, levels));
        }
        __builtin_prefetch(element_at<typename T::Element>(sample.gradient, rows.about(k + 16)));
        if (weight == 0) continue;  // a bucket of zeros, or with a NaN
        const Lanes::Float value = Lanes::keep(load_some<T>(values + rows.begin, rows.length), magnitude);
        const Lanes::Float x = Lanes::multiply(Lanes::multiply(value, rescale), inverse);
        const Lanes::Float whole = Lanes::convert(Lanes::truncate(x));
        const Lanes::Float f = Lanes::add(x, Lanes::multiply(whole, minus_one));
        const Lanes::Float variance = Lanes::multiply(f, Lanes::add(one, Lanes::multiply(f, minus_one)));
        const auto share = static_cast<float>(rows.stands_for(k)) * weight;
        sum = Lanes::add(sum, Lanes::multiply(variance, Lanes::set(share)));
    }
    float lanes[16];
    double total = 0;
    Lanes::store(lanes, sum);
    for (const float lane : lanes) total += static_cast<double>(lane);
    return total;
}

double rounding_sum(const RowSample& sample, uint64_t first, uint64_t last, float levels) {
    return with_dtype(sample.spec.dtype,
                      [&](auto t) { return rounding_sum<decltype(t)>(sample, first, last, levels); });
}

}  // namespace
}  // namespace qsgd
