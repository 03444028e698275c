// Adding up the values of frames' codes, and writing the sum as the result's dtype (docs/wire_format.md,
// section 10).
#pragma once

#include "cpu/elements.h"
#include "cpu/unpack.h"

namespace qsgd {
namespace {

// Of at most kMost elements.
template <uint64_t kMost>
class Sums {
  public:
    float* data() { return sum_; }
    void clear(uint64_t length) { memset(sum_, 0, ceil_div(length, 16) * 16 * sizeof *sum_); }

    // Adds the values of a frame's elements [begin, begin + length), whose codes were multiplied by 1 /
    // code_scale.
    template <class Code>
    void add(const FrameView& frame, uint64_t begin, uint64_t length, const Code* codes, float code_scale) {
        const uint64_t size = frame.header.bucket_size;
        const uint64_t first = begin / size, buckets = (begin + length - 1) / size - first + 1;
        bucket_steps(frame, first, buckets, code_scale, bucket_steps_);
        for (uint64_t k = 0, from = 0; k < buckets; ++k) {
            const uint64_t bucket_end = (first + k + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            const float unrescale = is_tiny(scale_of(frame, first + k)) ? kUnrescale : 1.0f;
            add_bucket(codes, from, to, bucket_steps_[k], unrescale);
            from = to;
        }
    }

    // Adds values.
    void add_values(const float* values, uint64_t length) {
        for (uint64_t i = 0; i < length; i += 16)
            Lanes::store(sum_ + i, Lanes::add(Lanes::load(sum_ + i), Lanes::load(values + i)));
    }

    // Elements [begin, begin + length) of the result.
    void write(const DecodeJob& job, uint64_t begin, uint64_t length, float factor) const {
        if (job.subtract) return subtract_from(element_at<float>(job.out, begin), length);
        with_dtype(job.dtype, [&](auto t) {
            using T = decltype(t);
            auto* out = element_at<typename T::Element>(job.out, begin);
            const Lanes::Float factors = Lanes::set(factor);
            uint64_t i = 0;
            for (; i + 16 <= length; i += 16)
                T::store(out + i, Lanes::multiply(Lanes::load(sum_ + i), factors));
            if (i == length) return;
            typename T::Element last[16];
            T::store(last, Lanes::multiply(Lanes::load(sum_ + i), factors));
            memcpy(out + i, last, (length - i) * sizeof *last);
        });
    }

  private:
    // out -= sum, and 0 where that is not finite.
    void subtract_from(float* out, uint64_t length) const {
        const Lanes::Float minus_one = Lanes::set(-1.0f);
        const Lanes::Int magnitude = Lanes::set(0x7FFFFFFFu);
        const Lanes::Int to_top = Lanes::set(0u - kInfBits);  // of all that are below infinity
        const auto left_of = [&](Lanes::Float x, uint64_t i) QSGD_INLINE_LAMBDA {
            const Lanes::Float rest = Lanes::add(x, Lanes::multiply(Lanes::load(sum_ + i), minus_one));
            const Lanes::Int finite = Lanes::add(Lanes::bit_and(Lanes::bits(rest), magnitude), to_top);
            return Lanes::keep(rest, Lanes::shift_right_signed<31>(finite));
        };
        uint64_t i = 0;
        for (; i + 16 <= length; i += 16) Lanes::store(out + i, left_of(Lanes::load(out + i), i));
        if (i == length) return;
        float last[16];
        Lanes::store(last, left_of(load_some<Float32>(out + i, length - i), i));
        memcpy(out + i, last, (length - i) * sizeof *last);
    }

    template <class Code>
    void add_bucket(const Code* codes, uint64_t from, uint64_t to, float step, float unrescale) {
        alignas(64) static const uint32_t kOnes[32] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                                       ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
        const Lanes::Float steps = Lanes::set(step), unrescales = Lanes::set(unrescale);
        for (uint64_t i = from; i < to; i += 16) {
            // Beyond the bucket a zero is added, which changes no sum: none is -0.
            const uint64_t beyond = to - i < 16 ? 16 - (to - i) : 0;
            const Lanes::Float mine = Lanes::keep(steps, Lanes::load(kOnes + beyond));
            const Lanes::Float value = Lanes::multiply(Lanes::multiply(numbers(codes + i), mine), unrescales);
            Lanes::store(sum_ + i, Lanes::add(Lanes::load(sum_ + i), value));
        }
    }

    float bucket_steps_[kMost];
    alignas(64) float sum_[kMost + 16];
};

}  // namespace
}  // namespace qsgd
