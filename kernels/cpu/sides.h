// A bucket's elements on either side of zero, and the two means that are its scales with onebit
// (docs/wire_format.md, section 12).
#pragma once

#include "cpu/statistics.h"

namespace qsgd {
namespace {

// x, whose top bit tells whether it is below zero: -0 becomes 0.
QSGD_INLINE Lanes::Float signed_by_side(Lanes::Float x) { return Lanes::add(x, Lanes::zero()); }

inline uint64_t lanes_total(Lanes::Int counts) {
    uint32_t lanes[16];
    uint64_t total = 0;
    Lanes::store(lanes, counts);
    for (uint32_t lane : lanes) total += lane;
    return total;
}

// Of one block: at most kSumBlock elements from element `first` of v.
template <class T>
Sides block_sides(const void* v, uint64_t first, uint64_t length) {
    Lanes::Doubles above = Lanes::zero_doubles(), below = Lanes::zero_doubles();
    Lanes::Int count = Lanes::set(0u);
    const auto add = [&](Lanes::Float row) QSGD_INLINE_LAMBDA {
        const Lanes::Float x = signed_by_side(row);
        Lanes::add_sides(above, below, x);
        count = Lanes::add(count, Lanes::shift_right<31>(Lanes::bits(x)));
    };
    const auto* p = element_at<typename T::Element>(v, first);
    uint64_t i = 0;
    for (; i + 16 <= length; i += 16) add(T::load(p + i));
    if (i < length) add(load_some<T>(p + i, length - i));  // its zeros change nothing
    return {Lanes::fold(above), -Lanes::fold(below), lanes_total(count)};
}

template <class T>
Sides bucket_sides(const void* v, uint64_t first, uint64_t length) {
    if (length <= kSumBlock) return block_sides<T>(v, first, length);
    SidesTree tree;
    for (uint64_t i = 0; i < length; i += kSumBlock) {
        const uint64_t left = length - i;
        tree.add(block_sides<T>(v, first + i, left < kSumBlock ? left : kSumBlock));
    }
    return tree.total();
}

// The scales of a bucket to `out`.
inline void find_means(const EncodeJob& job, uint64_t bucket, void* out) {
    const uint64_t first = bucket * job.spec.bucket_size, length = bucket_length(job.spec, bucket);
    const Sides sides = with_dtype(
        job.spec.dtype, [&](auto t) { return bucket_sides<decltype(t)>(job.gradient, first, length); });
    write_means(sides, length, out);
}

void sum_sides(const EncodeJob& job, uint64_t first, uint64_t last, Sides* sides) {
    with_dtype(job.spec.dtype, [&](auto t) {
        each_sum_block(job.spec, first, last, [&](uint64_t k, uint64_t element, uint64_t length) {
            sides[k] = block_sides<decltype(t)>(job.gradient, element, length);
        });
    });
}

}  // namespace
}  // namespace qsgd
