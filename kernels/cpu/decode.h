// Decode-and-sum of a range of blocks (docs/wire_format.md, section 10): fused where all frames are packed
// alike, otherwise frame by frame through codes in the first-level cache.
#pragma once

#include "cpu/decode_alike.h"
#include "cpu/elements.h"

namespace qsgd {
namespace {

class BlockDecoder {
  public:
    BlockDecoder(const DecodeJob& job, FrameWork* work)
        : job_(job), work_(work), kind_(kind_of(job.frames[0].header)), direct_(job.dtype == QSGD_FLOAT32) {}

    // The sum of blocks [first, last), at most kGroup.
    void decode(uint64_t first, uint64_t last) {
        const uint64_t begin = first * kBlock, end = last * kBlock < job_.count ? last * kBlock : job_.count;
        const bool together =
            job_.alike && end - begin >= kind_.elements && find_all_steps(begin, end - begin);
        for (uint64_t at = begin; at < end; at += kBlock) {
            const uint64_t length = end - at < kBlock ? end - at : kBlock;
            const uint64_t whole = together ? length / kind_.elements * kind_.elements : 0;
            if (whole > 0) decode_together(at, whole, (at - begin) / (16 * kind_.step_rows));
            if (whole < length) decode_apart(at + whole, length - whole);
        }
    }

  private:
    bool find_all_steps(uint64_t begin, uint64_t length) {
        const BucketRange range(begin, length, job_.frames[0].header.bucket_size, kind_.step_rows);
        for (uint32_t f = 0; f < job_.frame_count; ++f)
            if (!find_steps(job_.frames[f], range, kind_.code_scale, work_[f].steps)) return false;
        return true;
    }

    void decode_together(uint64_t begin, uint64_t length, uint64_t first_step) {
        const uint64_t offset = job_.frames[0].at.payload + begin / kind_.elements * kind_.bytes;
        float* out = direct_ ? element_at<float>(job_.out, begin) : sum_;
        kind_.sum(job_, work_, offset, first_step, length / kind_.elements, out);
        if (!direct_) write(begin, length, 1);
    }

    // Frame by frame: any codecs, buckets and lengths.
    void decode_apart(uint64_t begin, uint64_t length) {
        memset(sum_, 0, ceil_div(length, 16) * 16 * sizeof *sum_);
        for (uint32_t f = 0; f < job_.frame_count; ++f) {
            const FrameView& frame = job_.frames[f];
            work_[f].sums[0] += frame.header.codec == QSGD_CODEC_TERNARY
                                    ? unpack_ternaries(frame, begin, length)
                                    : unpack_units(frame, begin, length);
            add_values(frame, begin, length);
        }
        write(begin, length, job_.factor);
    }

    uint64_t unpack_units(const FrameView& frame, uint64_t begin, uint64_t length) {
        const uint32_t bits = code_bits(frame.header.levels);
        const uint64_t unit_bytes = 64 * bits;
        const uint64_t offset = frame.at.payload + unit_bytes * (begin / kUnit);
        const uint64_t bytes = payload_bytes(QSGD_CODEC_PACKED, frame.header.levels, length);
        const UnpackUnit unpack_unit = unpack_unit_of(bits);
        uint32_t words[16 * 8];
        for (uint64_t at = 0, unit = 0; at < bytes; at += unit_bytes, ++unit) {
            memcpy(words, frame.base + offset + at, bytes - at < unit_bytes ? bytes - at : unit_bytes);
            unpack_unit(words, codes_ + kUnit * unit);
        }
        return checksum(frame.base + offset, offset / 8, bytes / 8);
    }

    uint64_t unpack_ternaries(const FrameView& frame, uint64_t begin, uint64_t length) {
        const uint64_t offset = frame.at.payload + 16 * (begin / kTernaryUnit);
        const uint64_t units = ceil_div(length, kTernaryUnit);
        for (uint64_t u = 0; u < units; ++u)
            unpack_ternary(frame.base + offset + 16 * u, codes_ + kTernaryUnit * u);
        return checksum(frame.base + offset, offset / 8, 2 * units);
    }

    void add_values(const FrameView& frame, uint64_t begin, uint64_t length) {
        const uint64_t size = frame.header.bucket_size;
        const uint64_t first = begin / size, buckets = (begin + length - 1) / size - first + 1;
        const bool ternary = frame.header.codec == QSGD_CODEC_TERNARY;
        bucket_steps(frame, first, buckets, ternary ? 1 : code_scale(code_bits(frame.header.levels)),
                     bucket_steps_);
        for (uint64_t k = 0, from = 0; k < buckets; ++k) {
            const uint64_t bucket_end = (first + k + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            add_bucket(from, to, bucket_steps_[k], is_tiny(scale_of(frame, first + k)) ? kUnrescale : 1.0f);
            from = to;
        }
    }

    void add_bucket(uint64_t from, uint64_t to, float step, float unrescale) {
        alignas(64) static const uint32_t kOnes[32] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                                       ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
        const Lanes::Float steps = Lanes::set(step), unrescales = Lanes::set(unrescale);
        for (uint64_t i = from; i < to; i += 16) {
            // Beyond the bucket a zero is added, which changes no sum: none is -0.
            const uint64_t beyond = to - i < 16 ? 16 - (to - i) : 0;
            const Lanes::Float mine = Lanes::keep(steps, Lanes::load(kOnes + beyond));
            const Lanes::Float value =
                Lanes::multiply(Lanes::multiply(Lanes::load(codes_ + i), mine), unrescales);
            Lanes::store(sum_ + i, Lanes::add(Lanes::load(sum_ + i), value));
        }
    }

    // Elements [begin, begin + length) of the result, from sum_.
    void write(uint64_t begin, uint64_t length, float factor) {
        with_dtype(job_.dtype, [&](auto t) {
            using T = decltype(t);
            auto* out = element_at<typename T::Element>(job_.out, begin);
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

    const DecodeJob& job_;
    FrameWork* const work_;
    const Kind kind_;
    const bool direct_;
    float bucket_steps_[kBlock];
    alignas(64) float sum_[kBlock + 16];
    alignas(64) float codes_[kBlock + kTernaryUnit];
};

void decode_blocks(const DecodeJob& job, uint64_t first, uint64_t last, FrameWork* work) {
    BlockDecoder decoder(job, work);
    for (; first < last; first += kGroup)
        decoder.decode(first, first + kGroup < last ? first + kGroup : last);
}

}  // namespace
}  // namespace qsgd
