// Encoding of a range of blocks: scales, then codes, then payload, with a block in the first-level cache
// throughout.
#pragma once

#include "cpu/encode_onebit.h"
#include "cpu/quantize.h"
#include "cpu/random.h"
#include "cpu/statistics.h"

namespace qsgd {
namespace {

class BlockEncoder {
  public:
    BlockEncoder(const EncodeJob& job, uint64_t begin)
        : job_(job),
          find_scales_(find_scales_of(job.spec.dtype, job.spec.norm)),
          bits_(code_bits(job.spec.levels)),
          pack_units_(pack_units_of(bits_ < 8 ? bits_ : 8)),
          levels_(static_cast<float>(job.spec.levels)),
          random_(job.spec.seed, job.spec.rank, job.spec.tensor, job.spec.step) {
        start(begin);
    }

    // What comes next begins here.
    void start(uint64_t begin) {
        const uint64_t bucket = job_.spec.bucket_size;
        next_bucket_ = ceil_div(begin, bucket);
        open_bucket_ = UINT64_MAX;
        if (!job_.scales_ready && begin % bucket != 0) {  // an earlier range writes this one
            open_bucket_ = begin / bucket;
            find_scales_(job_, open_bucket_, open_bucket_ + 1, &open_scale_);
        }
    }

    // Payload of block number `block`, the one after the last call's, and its part of the checksum.
    uint64_t encode(uint64_t block) {
        const uint64_t begin = block * kBlock, length = fewer(kBlock, job_.spec.count - begin);
        const uint64_t whole = prepare(begin, length);
        return job_.spec.codec == QSGD_CODEC_TERNARY ? ternary(begin, length, whole)
                                                     : packed(begin, length, whole);
    }

    // Codes of elements [begin, end), the ones after the last call's, from the beginning of a unit on; zeros
    // up to the end of the last one. With kFetchFar the values that come later are fetched from memory
    // meanwhile; otherwise whoever codes these does that.
    template <bool kFetchFar>
    void codes(uint64_t begin, uint64_t end, int16_t* out) {
        const auto code_units = job_.spec.levels > kMostNarrowLevels ? wide_code_units<true, kFetchFar>
                                                                     : wide_code_units<false, kFetchFar>;
        for (; begin < end; begin += kBlock, out += kBlock) {
            const uint64_t length = fewer(kBlock, end - begin), whole = prepare(begin, length);
            const uint64_t unit = begin / kUnit, direct = whole / kUnit;
            code_units(direct_rows(begin), levels_, random_, unit, direct, out);
            code_units(staged_rows(whole), levels_, random_, unit + direct, ceil_div(length - whole, kUnit),
                       out + whole);
        }
    }

  private:
    static uint64_t fewer(uint64_t a, uint64_t b) { return a < b ? a : b; }
    uint8_t* scale_place(uint64_t bucket) const { return job_.frame + QSGD_HEADER_BYTES + 4 * bucket; }

    // Scales, inverses and, from the number that is returned on, staged values of [begin, begin + length).
    uint64_t prepare(uint64_t begin, uint64_t length) {
        const uint64_t next = next_bucket_;
        next_bucket_ = ceil_div(begin + length, job_.spec.bucket_size);
        if (!job_.scales_ready && next < next_bucket_)
            find_scales_(job_, next, next_bucket_, scale_place(next));
        first_bucket_ = next * job_.spec.bucket_size > begin ? next - 1 : next;
        const bool plain = find_inverses();
        // What can be read where it lies; the rest is copied, widened and multiplied here.
        const bool direct = plain && job_.spec.dtype == QSGD_FLOAT32 && job_.spec.bucket_size % kSpan == 0;
        const uint64_t whole = direct ? length / kUnit * kUnit : 0;
        spread_inverses(begin, whole);
        if (whole < length)
            with_dtype(job_.spec.dtype, [&](auto t) { stage<decltype(t)>(begin, whole, length); });
        return whole;
    }

    // Scales of the buckets that meet the block, and their inverses; false if one is tiny or not finite.
    bool find_inverses() {
        const uint64_t buckets = next_bucket_ - first_bucket_, padded = roundup16(buckets);
        Lanes::store(scales_ + padded - 16, Lanes::zero());   // whole vectors below
        const uint64_t open = first_bucket_ == open_bucket_;  // its place may be written right now
        if (open) scales_[0] = open_scale_;
        memcpy(scales_ + open, scale_place(first_bucket_ + open), 4 * (buckets - open));
        uint32_t special = 0;
        for (uint64_t k = 0; k < padded; ++k) special |= is_tiny(scales_[k]) | !is_finite(scales_[k]);
        for (uint64_t k = 0; k < padded; ++k)
            bucket_inverses_[k] = inverse_step(scales_[k], levels_ * kFractionOne);
        return special == 0;
    }

    // Calls body(k, first, last) for each of those buckets' share of [from, to), positions in the block.
    template <class Body>
    void each_bucket(uint64_t begin, uint64_t from, uint64_t to, Body&& body) const {
        const uint64_t size = job_.spec.bucket_size;
        for (uint64_t bucket = from ? (begin + from) / size : first_bucket_; from < to; ++bucket) {
            const uint64_t bucket_end = (bucket + 1) * size - begin;
            const uint64_t last = bucket_end < to ? bucket_end : to;
            body(bucket - first_bucket_, from, last);
            from = last;
        }
    }

    // One inverse a span.
    void spread_inverses(uint64_t begin, uint64_t length) {
        each_bucket(begin, 0, length, [&](uint64_t k, uint64_t first, uint64_t last) {
            for (uint64_t span = first / kSpan; span < last / kSpan; ++span)
                inverses_[span] = bucket_inverses_[k];
        });
    }

    // Values times their inverses, zero where the bucket is not finite and past the end.
    template <class T>
    void stage(uint64_t begin, uint64_t from, uint64_t to) {
        const auto* v = element_at<typename T::Element>(job_.gradient, begin);
        each_bucket(begin, from, to, [&](uint64_t k, uint64_t first, uint64_t last) {
            const bool finite = is_finite(scales_[k]);
            const Lanes::Float rescale = Lanes::set(is_tiny(scales_[k]) ? kRescale : 1.0f);
            const Lanes::Float inverse = Lanes::set(bucket_inverses_[k]);
            for (uint64_t i = first; i < last;
                 i += 16) {  // the last store may go beyond the bucket: the next bucket's come after it
                __builtin_prefetch(v + i + kAhead, 0, 2);
                const Lanes::Float value = load_some<T>(v + i, job_.spec.count - begin - i);
                const Lanes::Float x = Lanes::multiply(Lanes::multiply(value, rescale), inverse);
                Lanes::store(values_ + i, finite ? x : Lanes::zero());
            }
        });
        const uint64_t end = ceil_div(to, kUnit) * kUnit;
        for (uint64_t i = to; i < end; ++i) values_[i] = 0;
        for (uint64_t span = from / kSpan; span < end / kSpan; ++span) inverses_[span] = 1;
    }

    Rows direct_rows(uint64_t begin) const { return {element_at<float>(job_.gradient, begin), inverses_}; }
    Rows staged_rows(uint64_t from) const { return Rows{values_, inverses_}.from(from / 16); }

    uint64_t packed(uint64_t begin, uint64_t length, uint64_t whole) {
        const uint64_t unit = begin / kUnit, direct = whole / kUnit, units = length / kUnit;
        const uint64_t unit_bytes = 64 * bits_, offset = job_.at.payload + unit_bytes * unit;
        uint8_t* out = job_.frame + offset;
        RunningChecksum running(offset / 8);
        pack_units_(direct_rows(begin), levels_, random_, unit, direct, out, running);
        pack_units_(staged_rows(whole), levels_, random_, unit + direct, units - direct,
                    out + unit_bytes * direct, running);
        const uint64_t terms = Lanes::total(running.sum);
        if (length % kUnit == 0) return terms;
        uint8_t part[64 * 8];
        pack_units_(staged_rows(units * kUnit), levels_, random_, unit + units, 1, part, running);
        const uint64_t bytes = payload_bytes(QSGD_CODEC_PACKED, job_.spec.levels, length % kUnit);
        memcpy(out + unit_bytes * units, part, bytes);
        return terms + checksum(part, (offset + unit_bytes * units) / 8, bytes / 8);
    }

    uint64_t ternary(uint64_t begin, uint64_t length, uint64_t whole) {
        const uint64_t unit = begin / kUnit, direct = whole / kUnit;
        code_units(direct_rows(begin), random_, unit, direct, codes_);
        code_units(staged_rows(whole), random_, unit + direct, ceil_div(length - whole, kUnit),
                   codes_ + whole);
        if (length < kBlock) memset(codes_ + length, 0, kBlock - length);
        const uint64_t offset = job_.at.payload + 16 * (begin / kTernaryUnit),
                       units = ceil_div(length, kTernaryUnit);
        for (uint64_t u = 0; u < units; ++u)
            pack_ternary(codes_ + kTernaryUnit * u, job_.frame + offset + 16 * u);
        return checksum(job_.frame + offset, offset / 8, 2 * units);
    }

    const EncodeJob& job_;
    const FindScales find_scales_;
    const uint32_t bits_;
    const PackUnits pack_units_;
    const float levels_;
    const Random random_;
    uint64_t next_bucket_;   // the first that begins after the blocks so far
    uint64_t first_bucket_;  // that meets the block at hand
    uint64_t open_bucket_;
    float open_scale_ = 0;
    alignas(64) float values_[kBlock + 16];
    float scales_[kBlock], bucket_inverses_[kBlock];
    float inverses_[kBlock / kSpan];
    alignas(64) int8_t codes_[kBlock];
};

template <class Encoder>
uint64_t encode_blocks_by(const EncodeJob& job, uint64_t first, uint64_t last) {
    Encoder encoder(job, first * kBlock);
    uint64_t terms = 0;
    for (uint64_t block = first; block < last; ++block) terms += encoder.encode(block);
    return terms;
}

uint64_t encode_blocks(const EncodeJob& job, uint64_t first, uint64_t last) {
    return job.spec.codec == QSGD_CODEC_ONEBIT ? encode_blocks_by<OnebitEncoder>(job, first, last)
                                               : encode_blocks_by<BlockEncoder>(job, first, last);
}

}  // namespace
}  // namespace qsgd
