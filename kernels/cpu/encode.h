// Encoding of a range of blocks: scales, then codes, then payload, with a block in the first-level cache
// throughout.
#pragma once

#include "cpu/jobs.h"
#include "cpu/quantize.h"
#include "cpu/statistics.h"

namespace qsgd {
namespace {

template <class T>
class BlockEncoder {
  public:
    BlockEncoder(const EncodeJob& job, uint64_t first_block)
        : job_(job),
          random_(job.spec.seed, job.spec.rank, job.spec.tensor, job.spec.step),
          limit_(Lanes::set(static_cast<float>(job.spec.levels) * kFractionOne)) {
        const uint64_t begin = first_block * kBlock, bucket = job.spec.bucket_size;
        next_bucket_ = ceil_div(begin, bucket);          // the first bucket that begins here
        if (!job.scales_ready && begin % bucket != 0) {  // an earlier range writes this one
            open_bucket_ = begin / bucket;
            open_scale_ = find_scale(open_bucket_);
        }
    }

    // Payload of block number `block`, and its part of the checksum.
    uint64_t encode(uint64_t block) {
        const uint64_t begin = block * kBlock;
        const uint64_t length = job_.spec.count - begin < kBlock ? job_.spec.count - begin : kBlock;
        if (!job_.scales_ready) find_scales(begin + length);
        const bool direct = length == kBlock && job_.spec.bucket_size % 16 == 0 && row_inverses(begin);
        if (!direct) stage(begin, length);
        if (job_.spec.codec == QSGD_CODEC_TERNARY) return ternary(block, length, direct);
        switch (code_bits(job_.spec.levels)) {
            case 2:
                return packed<2>(block, length, direct);
            case 3:
                return packed<3>(block, length, direct);
            case 4:
                return packed<4>(block, length, direct);
            case 5:
                return packed<5>(block, length, direct);
            case 6:
                return packed<6>(block, length, direct);
            case 7:
                return packed<7>(block, length, direct);
            default:
                return packed<8>(block, length, direct);
        }
    }

  private:
    float find_scale(uint64_t bucket) const {
        const uint64_t first = bucket * job_.spec.bucket_size, left = job_.spec.count - first;
        const uint64_t length = left < job_.spec.bucket_size ? left : job_.spec.bucket_size;
        if (job_.spec.norm == QSGD_NORM_L2)
            return scale_of(bucket_statistics<T, true>(job_.gradient, first, length), QSGD_NORM_L2);
        return scale_of(bucket_statistics<T, false>(job_.gradient, first, length), QSGD_NORM_MAX);
    }

    uint8_t* scale_place(uint64_t bucket) const { return job_.frame + QSGD_HEADER_BYTES + 4 * bucket; }

    void find_scales(uint64_t end) {
        for (; next_bucket_ * job_.spec.bucket_size < end; ++next_bucket_) {
            const float scale = find_scale(next_bucket_);
            memcpy(scale_place(next_bucket_), &scale, sizeof scale);
        }
    }

    float scale(uint64_t bucket) const {
        if (bucket == open_bucket_) return open_scale_;
        return load_element<float>(scale_place(0), bucket);
    }

    // Calls body(scale, begin, end) for each bucket's share of [begin, begin + length), positions relative to
    // begin.
    template <class Body>
    void each_bucket(uint64_t begin, uint64_t length, Body&& body) const {
        const uint64_t size = job_.spec.bucket_size;
        uint64_t bucket = begin / size, from = 0;
        while (from < length) {
            const uint64_t bucket_end = (bucket + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            body(scale(bucket), from, to);
            from = to;
            ++bucket;
        }
    }

    float scaled_inverse(float scale) const {
        return inverse_step(scale, static_cast<float>(job_.spec.levels)) * kFractionOne;
    }

    // One inverse a row; false if a bucket of the block must be staged.
    bool row_inverses(uint64_t begin) {
        bool direct = true;
        each_bucket(begin, kBlock, [&](float scale, uint64_t from, uint64_t to) {
            if (is_tiny(scale) || !is_finite(scale)) direct = false;
            const float inverse = scaled_inverse(scale);
            for (uint64_t row = from / 16; row < to / 16; ++row) inverses_[row] = inverse;
        });
        return direct;
    }

    // Values widened, rescaled, zero where the bucket is not finite and past the end; one inverse an element.
    void stage(uint64_t begin, uint64_t length) {
        each_bucket(begin, length, [&](float scale, uint64_t from, uint64_t to) {
            const float rescale = is_tiny(scale) ? kRescale : 1.0f;
            const float inverse = scaled_inverse(scale);
            const bool finite = is_finite(scale);
            for (uint64_t i = from; i < to; ++i) {
                const float v = T::widen(load_element<typename T::Element>(job_.gradient, begin + i));
                values_[i] = finite ? v * rescale : 0;
                inverses_[i] = inverse;
            }
        });
        for (uint64_t i = length; i < kBlock; ++i) values_[i] = inverses_[i] = 0;
    }

    DirectRows<T> direct_rows(uint64_t block) const {
        return {element_at<typename T::Element>(job_.gradient, block * kBlock), inverses_, limit_};
    }
    StagedRows staged_rows() const { return {values_, inverses_, limit_}; }

    template <int Bits>
    uint64_t packed(uint64_t block, uint64_t length, bool direct) {
        return direct ? packed_rows<Bits>(block, length, direct_rows(block))
                      : packed_rows<Bits>(block, length, staged_rows());
    }

    template <int Bits, class Rows>
    uint64_t packed_rows(uint64_t block, uint64_t length, const Rows& rows) {
        const uint64_t first_unit = block * (kBlock / kUnit);
        const uint64_t payload = job_.at.payload + 64 * Bits * first_unit;
        RunningChecksum running(payload / 8);
        uint8_t* out = job_.frame + payload;
        uint64_t unit = 0;
        for (; (unit + 1) * kUnit <= length; ++unit, out += 64 * Bits)
            pack_unit<Bits>(rows.at(static_cast<int>(32 * unit)), random_, first_unit + unit,
                            reinterpret_cast<uint32_t*>(out), running);
        const uint64_t terms = Lanes::total(running.sum);
        if (unit * kUnit == length) return terms;
        uint32_t last[16 * Bits];
        pack_unit<Bits>(rows.at(static_cast<int>(32 * unit)), random_, first_unit + unit, last, running);
        const uint64_t bytes = payload_bytes(QSGD_CODEC_PACKED, job_.spec.levels, length % kUnit);
        memcpy(out, last, bytes);
        return terms + checksum(out, static_cast<uint64_t>(out - job_.frame) / 8, bytes / 8);
    }

    uint64_t ternary(uint64_t block, uint64_t length, bool direct) {
        const uint64_t first_group = block * (kBlock / kGroup);
        for (uint64_t g = 0; g * kGroup < length; ++g) {
            const int row = static_cast<int>(g * kGroupRows);
            if (direct)
                code_group(direct_rows(block).at(row), random_, first_group + g, codes_ + g * kGroup);
            else
                code_group(staged_rows().at(row), random_, first_group + g, codes_ + g * kGroup);
        }
        const uint64_t payload = job_.at.payload + block * (kBlock / kTernaryUnit) * 16;
        uint8_t* out = job_.frame + payload;
        const uint64_t units = ceil_div(length, kTernaryUnit);
        if (length < kBlock) memset(codes_ + length, 0, kBlock - length);
        for (uint64_t u = 0; u < units; ++u) pack_ternary(codes_ + u * kTernaryUnit, out + 16 * u);
        return checksum(out, payload / 8, 2 * units);
    }

    const EncodeJob& job_;
    Random random_;
    Lanes::Float limit_;
    uint64_t next_bucket_;
    uint64_t open_bucket_ = UINT64_MAX;
    float open_scale_ = 0;
    alignas(64) float values_[kBlock];
    alignas(64) float inverses_[kBlock];
    alignas(64) int8_t codes_[kBlock];
};

template <class T>
uint64_t encode_blocks_of(const EncodeJob& job, uint64_t first, uint64_t last) {
    BlockEncoder<T> encoder(job, first);
    uint64_t terms = 0;
    for (uint64_t block = first; block < last; ++block) terms += encoder.encode(block);
    return terms;
}

template <class T>
void sum_blocks_of(const EncodeJob& job, uint64_t first, uint64_t last, double* sums, uint32_t* largest) {
    const qsgd_spec& spec = job.spec;
    const uint64_t size = spec.bucket_size < spec.count ? spec.bucket_size : spec.count;
    const uint64_t per_bucket = ceil_div(size, kSumBlock);
    for (uint64_t k = first; k < last; ++k) {
        const uint64_t bucket = k / per_bucket, bucket_begin = bucket * size;
        const uint64_t bucket_length = spec.count - bucket_begin < size ? spec.count - bucket_begin : size;
        const uint64_t begin = k % per_bucket * kSumBlock;
        if (begin >= bucket_length) return;  // the last bucket may be shorter
        const uint64_t length = bucket_length - begin < kSumBlock ? bucket_length - begin : kSumBlock;
        const Statistics s = spec.norm == QSGD_NORM_L2
                                 ? block_statistics<T, true>(job.gradient, bucket_begin + begin, length)
                                 : block_statistics<T, false>(job.gradient, bucket_begin + begin, length);
        sums[k] = s.sum;
        largest[k] = s.largest_bits;
    }
}

template <class T>
double bucket_squares_of(const EncodeJob& job, uint64_t first, uint64_t last) {
    PairwiseTree tree;
    for (uint64_t bucket = first; bucket < last; ++bucket) {
        const uint64_t begin = bucket * job.spec.bucket_size, left = job.spec.count - begin;
        const uint64_t length = left < job.spec.bucket_size ? left : job.spec.bucket_size;
        tree.add(bucket_statistics<T, true>(job.gradient, begin, length).sum);
    }
    return tree.total();
}

}  // namespace
}  // namespace qsgd
