// A bucket's largest magnitude and sum of squares (docs/wire_format.md, sections 2 and 3).
#pragma once

#include "cpu/elements.h"
#include "cpu/scale.h"

namespace qsgd {
namespace {

// Statistics of one block: at most kSumBlock elements from element `first` of v.
template <class T, bool kSquares>
Statistics block_statistics(const void* v, uint64_t first, uint64_t length) {
    using Element = typename T::Element;
    const Lanes::Int magnitude = Lanes::set(0x7FFFFFFFu);
    Lanes::Int largest = Lanes::set(0u);
    Lanes::Doubles squares = Lanes::zero_doubles();
    const Element* p = element_at<Element>(v, first);
    uint64_t i = 0;
    for (; i + 16 <= length; i += 16) {
        const Lanes::Float row = T::load(p + i);
        largest = Lanes::max_unsigned(largest, Lanes::bit_and(Lanes::bits(row), magnitude));
        if (kSquares) Lanes::add_squares(squares, row);
    }
    if (i < length) {
        Element last[16] = {};  // zeros change neither the maximum nor the sum
        memcpy(last, p + i, (length - i) * sizeof(Element));
        const Lanes::Float row = T::load(last);
        largest = Lanes::max_unsigned(largest, Lanes::bit_and(Lanes::bits(row), magnitude));
        if (kSquares) Lanes::add_squares(squares, row);
    }
    return {Lanes::largest(largest), kSquares ? Lanes::fold(squares) : 0};
}

template <class T, bool kSquares>
Statistics bucket_statistics(const void* v, uint64_t first, uint64_t length) {
    if (!kSquares || length <= kSumBlock) return block_statistics<T, kSquares>(v, first, length);
    Statistics all;
    PairwiseTree tree;
    for (uint64_t i = 0; i < length; i += kSumBlock) {
        const uint64_t left = length - i;
        const Statistics s = block_statistics<T, true>(v, first + i, left < kSumBlock ? left : kSumBlock);
        if (s.largest_bits > all.largest_bits) all.largest_bits = s.largest_bits;
        tree.add(s.sum);
    }
    all.sum = tree.total();
    return all;
}

}  // namespace
}  // namespace qsgd
