// Decode-and-sum of a range of blocks (docs/wire_format.md, section 10): fused where all frames are packed
// alike, otherwise frame by frame through codes in the first-level cache.
#pragma once

#include "cpu/decode_onebit.h"
#include "cpu/dither.h"
#include "cpu/sums.h"

namespace qsgd {
namespace {

class BlockDecoder {
  public:
    BlockDecoder(const DecodeJob& job, FrameWork* work)
        : job_(job),
          work_(work),
          onebit_(job.frames[0].header.codec == QSGD_CODEC_ONEBIT),
          kind_(onebit_ ? Kind{kUnit, 64, kManyRows, 1, sum_onebit} : kind_of(job.frames[0].header)),
          direct_(job.dtype == QSGD_FLOAT32 && !job.subtract) {}

    // The sum of blocks [first, last), at most kGroup.
    void decode(uint64_t first, uint64_t last) {
        const uint64_t begin = first * kBlock, end = last * kBlock < job_.count ? last * kBlock : job_.count;
        const bool together =
            job_.alike && end - begin >= kind_.elements && (onebit_ || find_all_steps(begin, end - begin));
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
        float* out = direct_ ? element_at<float>(job_.out, begin) : sums_.data();
        kind_.sum(job_, work_, offset, first_step, length / kind_.elements, out);
        if (!direct_) sums_.write(job_, begin, length, 1);
    }

    // Frame by frame: any codecs, buckets and lengths.
    void decode_apart(uint64_t begin, uint64_t length) {
        sums_.clear(length);
        for (uint32_t f = 0; f < job_.frame_count; ++f) {
            const FrameView& frame = job_.frames[f];
            if (frame.header.codec == QSGD_CODEC_ONEBIT) {
                add_onebit(frame, begin, length, work_[f]);
                continue;
            }
            const bool ternary = frame.header.codec == QSGD_CODEC_TERNARY;
            work_[f].sums[0] +=
                ternary ? unpack_ternaries(frame, begin, length) : unpack_units(frame, begin, length);
            float scale = ternary ? 1 : code_scale(code_bits(frame.header.levels));
            if (is_subtractive(frame.header)) {
                undo_dither(frame.header, begin, length, codes_, scale, codes_);
                scale = 1;
            }
            sums_.add(frame, begin, length, codes_, scale);
        }
        sums_.write(job_, begin, length, job_.factor);
    }

    void add_onebit(const FrameView& frame, uint64_t begin, uint64_t length, FrameWork& work) {
        const uint64_t offset = frame.at.payload + 64 * (begin / kUnit);
        work.sums[0] += checksum(frame.base + offset, offset / 8, 8 * ceil_div(length, kUnit));
        sums_.add_values(onebit_values_.read(frame, begin, length), length);
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

    const DecodeJob& job_;
    FrameWork* const work_;
    const bool onebit_;
    const Kind kind_;
    const bool direct_;
    Sums<kBlock> sums_;
    OnebitValues<kBlock> onebit_values_;
    alignas(64) float codes_[kBlock + kTernaryUnit];
};

void decode_blocks(const DecodeJob& job, uint64_t first, uint64_t last, FrameWork* work) {
    BlockDecoder decoder(job, work);
    for (; first < last; first += kGroup)
        decoder.decode(first, first + kGroup < last ? first + kGroup : last);
}

}  // namespace
}  // namespace qsgd
