// Error feedback: a gradient and what earlier frames left of it.
#pragma once

#include "cpu/elements.h"

namespace qsgd {
namespace {

void add_gradient(const void* gradient, uint8_t dtype, uint64_t first, uint64_t last, float* residual) {
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* g = element_at<typename T::Element>(gradient, first);
        auto* const e = element_at<float>(residual, first);
        const uint64_t length = last - first;
        uint64_t i = 0;
        for (; i + 16 <= length; i += 16) Lanes::store(e + i, Lanes::add(Lanes::load(e + i), T::load(g + i)));
        if (i == length) return;
        float part[16];
        Lanes::store(part,
                     Lanes::add(load_some<Float32>(e + i, length - i), load_some<T>(g + i, length - i)));
        memcpy(e + i, part, (length - i) * sizeof *part);
    });
}

}  // namespace
}  // namespace qsgd
