// A bucket's largest magnitude and sum of squares (docs/wire_format.md, sections 2 and 3).
#pragma once

#include "cpu/elements.h"
#include "cpu/jobs.h"
#include "cpu/scale.h"

namespace qsgd {
namespace {

// Statistics of one block: at most kSumBlock elements from element `first` of v.
template <class T, bool kSquares>
Statistics block_statistics(const void* v, uint64_t first, uint64_t length) {
    const Lanes::Int magnitude = Lanes::set(0x7FFFFFFFu);
    Lanes::Int largest = Lanes::set(0u);
    Lanes::Doubles squares = Lanes::zero_doubles();
    const auto add = [&](Lanes::Float row) QSGD_INLINE_LAMBDA {
        if (kSquares)
            Lanes::add_squares(squares, row);
        else
            largest = Lanes::max_magnitude(largest, Lanes::bit_and(Lanes::bits(row), magnitude));
    };
    const auto* p = element_at<typename T::Element>(v, first);
    uint64_t i = 0;
    for (; i + 64 <= length; i += 64)
        unroll<0, 4>([&](auto k) QSGD_INLINE_LAMBDA { add(T::load(p + i + 16 * k.value)); });
    for (; i + 16 <= length; i += 16) add(T::load(p + i));
    if (i < length) add(load_some<T>(p + i, length - i));  // its zeros change nothing
    return {kSquares ? 0 : Lanes::largest(largest), kSquares ? Lanes::fold(squares) : 0};
}

template <class T, bool kSquares>
Statistics bucket_statistics(const void* v, uint64_t first, uint64_t length) {
    if (!kSquares || length <= kSumBlock) return block_statistics<T, kSquares>(v, first, length);
    Statistics all;
    PairwiseTree tree;
    for (uint64_t i = 0; i < length; i += kSumBlock) {
        const uint64_t left = length - i;
        tree.add(block_statistics<T, true>(v, first + i, left < kSumBlock ? left : kSumBlock).sum);
    }
    all.sum = tree.total();
    return all;
}

// Statistics of elements [first, first + length) of v: one bucket.
using StatisticsOf = Statistics (*)(const void* v, uint64_t first, uint64_t length);

inline StatisticsOf statistics_of(uint8_t dtype, bool squares) {
    return with_dtype(dtype, [=](auto t) -> StatisticsOf {
        using T = decltype(t);
        return squares ? bucket_statistics<T, true> : bucket_statistics<T, false>;
    });
}

// The scales of buckets [first, last) to `out`.
using FindScales = void (*)(const EncodeJob& job, uint64_t first, uint64_t last, void* out);

inline uint64_t bucket_length(const qsgd_spec& spec, uint64_t bucket) {
    const uint64_t left = spec.count - bucket * spec.bucket_size;
    return left < spec.bucket_size ? left : spec.bucket_size;
}

template <class T, bool kL2>
void find_scales(const EncodeJob& job, uint64_t first, uint64_t last, void* out) {
    for (uint64_t bucket = first; bucket < last; ++bucket) {
        const Statistics s = bucket_statistics<T, kL2>(job.gradient, bucket * job.spec.bucket_size,
                                                       bucket_length(job.spec, bucket));
        const float scale = scale_of(s, kL2 ? QSGD_NORM_L2 : QSGD_NORM_MAX);
        memcpy(element_at<float>(out, bucket - first), &scale, sizeof scale);
    }
}

inline FindScales find_scales_of(uint8_t dtype, uint8_t norm) {
    return with_dtype(dtype, [=](auto t) -> FindScales {
        using T = decltype(t);
        return norm == QSGD_NORM_L2 ? find_scales<T, true> : find_scales<T, false>;
    });
}

// Calls body(k, element, length) for each sum block k in [first, last), numbered through all buckets.
template <class Body>
void each_sum_block(const qsgd_spec& spec, uint64_t first, uint64_t last, Body&& body) {
    const uint64_t per_bucket = ceil_div(bucket_length(spec, 0), kSumBlock);
    for (uint64_t k = first; k < last; ++k) {
        const uint64_t bucket = k / per_bucket, begin = k % per_bucket * kSumBlock;
        const uint64_t left = bucket_length(spec, bucket) - begin;
        body(k, bucket * spec.bucket_size + begin, left < kSumBlock ? left : kSumBlock);
    }
}

void sum_blocks(const EncodeJob& job, uint64_t first, uint64_t last, double* sums, uint32_t* largest) {
    const StatisticsOf statistics = statistics_of(job.spec.dtype, job.spec.norm == QSGD_NORM_L2);
    each_sum_block(job.spec, first, last, [&](uint64_t k, uint64_t element, uint64_t length) {
        const Statistics s = statistics(job.gradient, element, length);
        sums[k] = s.sum;
        largest[k] = s.largest_bits;
    });
}

double bucket_squares(const EncodeJob& job, uint64_t first, uint64_t last) {
    const StatisticsOf statistics = statistics_of(job.spec.dtype, true);
    PairwiseTree tree;
    for (uint64_t bucket = first; bucket < last; ++bucket)
        tree.add(
            statistics(job.gradient, bucket * job.spec.bucket_size, bucket_length(job.spec, bucket)).sum);
    return tree.total();
}

}  // namespace
}  // namespace qsgd
