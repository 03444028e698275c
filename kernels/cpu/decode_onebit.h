// Decoding of onebit (docs/wire_format.md, section 12).
#pragma once

#include "cpu/decode_alike.h"

namespace qsgd {
namespace {

// What the bits of a bucket stand for.
struct SideValues {
    Lanes::Float positive, negative;
    SideValues(const uint8_t* frame, uint64_t bucket) {
        float means[2];
        memcpy(means, frame + QSGD_HEADER_BYTES + 8 * bucket, sizeof means);
        positive = Lanes::set(means[0]), negative = Lanes::set(-means[1]);
    }
    // Of the bits that are on top of the lanes.
    QSGD_INLINE Lanes::Float of(Lanes::Int bits) const {
        return Lanes::where_negative(bits, negative, positive);
    }
};

// Sums of `units` units of frames with the same buckets, of which none ends within a unit.
inline void sum_onebit(const DecodeJob& job, FrameWork* work, uint64_t offset, uint64_t, uint64_t units,
                       float* out) {
    constexpr int kRows = Lanes::kRowsAtOnce;
    const FrameView& first = job.frames[0];
    uint64_t element = (offset - first.at.payload) / 64 * kUnit;
    Keys keys(offset / 8);
    for (; units > 0; --units, offset += 64, element += kUnit, out += kUnit) {
        const uint64_t bucket = element / first.header.bucket_size;
        const Lanes::Sum key = keys.take();
        unroll<0, 32 / kRows>([&](auto part) QSGD_INLINE_LAMBDA {
            Lanes::Float sum[kRows];
            unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA { sum[r.value] = Lanes::zero(); });
            for (FrameWork* frame = work; frame < work + job.frame_count; ++frame) {
                const uint8_t* at = frame->base + offset;
                const Lanes::Int word = Lanes::load(reinterpret_cast<const uint32_t*>(at));
                if (part.value == 0) {
                    __builtin_prefetch(at + kPrefetchBytes, 0, 2);
                    add_to_frame<0, 1>(frame->sums, &word, &key);
                }
                const SideValues values(frame->base, bucket);
                unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA {
                    constexpr int kRow = part.value * kRows + r.value;
                    sum[r.value] = Lanes::add(sum[r.value], values.of(Lanes::shift_left<31 - kRow>(word)));
                });
            }
            finish_rows(job, sum, out + 16 * kRows * part.value);
        });
    }
}

// The values of some elements of one frame, at most kMost, of any buckets.
template <uint64_t kMost>
class OnebitValues {
  public:
    // Of elements [begin, begin + length), from the beginning of a unit on.
    const float* read(const FrameView& frame, uint64_t begin, uint64_t length) {
        const uint8_t* words = frame.base + frame.at.payload + 64 * (begin / kUnit);
        for (uint64_t i = 0; i < length; i += kUnit, words += 64) {
            const Lanes::Int word = Lanes::load(reinterpret_cast<const uint32_t*>(words));
            unroll<0, 32>([&](auto r) QSGD_INLINE_LAMBDA {
                Lanes::store(signs_ + i + 16 * r.value, Lanes::shift_left<31 - r.value>(word));
            });
        }
        const uint64_t size = frame.header.bucket_size;
        for (uint64_t from = 0, bucket = begin / size; from < length; ++bucket) {
            const uint64_t bucket_end = (bucket + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            const SideValues values(frame.base, bucket);
            for (uint64_t i = from; i < to; i += 16)  // what goes beyond the bucket is written over
                Lanes::store(values_ + i, values.of(Lanes::load(signs_ + i)));
            from = to;
        }
        return values_;
    }

  private:
    alignas(64) uint32_t signs_[kMost + 16] = {};
    alignas(64) float values_[kMost + 16] = {};
};

}  // namespace
}  // namespace qsgd
