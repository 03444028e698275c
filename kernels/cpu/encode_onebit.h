// Encoding of a range of blocks by onebit: scales, then the bits of the same elements, which are in the cache
// (docs/wire_format.md, section 12).
#pragma once

#include "cpu/checksum.h"
#include "cpu/sides.h"

namespace qsgd {
namespace {

// The bits of `units` units, 64 bytes each, at out.
template <class T>
void pack_signs(const typename T::Element* v, uint64_t units, uint8_t* out, RunningChecksum& checksum) {
    const Lanes::Int top = Lanes::set(0x80000000u);
    RunningChecksum running = checksum;
    for (; units > 0; --units, v += kUnit, out += 64) {
        Lanes::Int word = Lanes::set(0u);
        unroll<0, 32>([&](auto r) QSGD_INLINE_LAMBDA {
            __builtin_prefetch(v + 16 * r.value + kAhead, 0, 2);
            const Lanes::Int signs = Lanes::bits(signed_by_side(T::load(v + 16 * r.value)));
            word = Lanes::or_masked(Lanes::shift_right<1>(word), signs, top);
        });
        Lanes::store(reinterpret_cast<uint32_t*>(out), word);
        running.add(word);
    }
    checksum = running;
}

class OnebitEncoder {
  public:
    OnebitEncoder(const EncodeJob& job, uint64_t begin)
        : job_(job), next_bucket_(ceil_div(begin, job.spec.bucket_size)) {
        if (job.scales_ready || begin % job.spec.bucket_size == 0) return;
        open_bucket_ = begin / job.spec.bucket_size;  // an earlier range writes its scales
        float means[2];
        find_means(job, open_bucket_, means);
        open_finite_ = is_finite(means[0]);
    }

    // Payload of block number `block`, the one after the last call's, and its part of the checksum.
    uint64_t encode(uint64_t block) {
        const uint64_t begin = block * kBlock, left = job_.spec.count - begin;
        const uint64_t length = left < kBlock ? left : kBlock;
        const uint64_t next = ceil_div(begin + length, job_.spec.bucket_size);
        for (; next_bucket_ < next; ++next_bucket_)
            if (!job_.scales_ready) find_means(job_, next_bucket_, scales_place(next_bucket_));
        const uint64_t offset = job_.at.payload + 64 * (begin / kUnit), units = ceil_div(length, kUnit);
        RunningChecksum running(offset / 8);
        with_dtype(job_.spec.dtype, [&](auto t) {
            using T = decltype(t);
            const auto* v = element_at<typename T::Element>(job_.gradient, begin);
            if (length % kUnit == 0 && all_finite(begin, length))
                return pack_signs<T>(v, units, job_.frame + offset, running);
            stage<T>(v, begin, length);
            pack_signs<Float32>(values_, units, job_.frame + offset, running);
        });
        return Lanes::total(running.sum);
    }

  private:
    uint8_t* scales_place(uint64_t bucket) const { return job_.frame + QSGD_HEADER_BYTES + 8 * bucket; }

    bool finite(uint64_t bucket) const {
        if (bucket == open_bucket_) return open_finite_;
        float mean;
        memcpy(&mean, scales_place(bucket), sizeof mean);
        return is_finite(mean);
    }

    bool all_finite(uint64_t begin, uint64_t length) const {
        const uint64_t size = job_.spec.bucket_size;
        for (uint64_t bucket = begin / size; bucket <= (begin + length - 1) / size; ++bucket)
            if (!finite(bucket)) return false;
        return true;
    }

    // The values of a block, zeros where the bucket is not finite and from its end to the unit's.
    template <class T>
    void stage(const typename T::Element* v, uint64_t begin, uint64_t length) {
        const uint64_t size = job_.spec.bucket_size;
        for (uint64_t from = 0, bucket = begin / size; from < length; ++bucket) {
            const uint64_t bucket_end = (bucket + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            const bool known = finite(bucket);
            for (uint64_t i = from; i < to; i += 16)  // what goes beyond the bucket is written over
                Lanes::store(values_ + i, known ? load_some<T>(v + i, length - i) : Lanes::zero());
            from = to;
        }
        for (uint64_t i = length; i < ceil_div(length, kUnit) * kUnit; ++i) values_[i] = 0;
    }

    const EncodeJob& job_;
    uint64_t next_bucket_;  // the first that begins after the blocks so far
    uint64_t open_bucket_ = UINT64_MAX;
    bool open_finite_ = true;
    alignas(64) float values_[kBlock + 16];
};

}  // namespace
}  // namespace qsgd
