// Decode-and-sum of frames that are packed alike: sums stay in registers while all frames add to them.
#pragma once

#include "cpu/checksum.h"
#include "cpu/jobs.h"
#include "cpu/unpack.h"

namespace qsgd {
namespace {

constexpr uint64_t kPrefetchBytes = 2048;  // how far ahead frames are read

inline float load_float(const uint8_t* base, uint64_t i) {
    float value;
    memcpy(&value, base + 4 * i, sizeof value);
    return value;
}

// The steps of a frame for a block, times `down`: one every kStepRows rows. False if a bucket's scale is
// tiny.
inline bool find_steps(const FrameView& frame, uint64_t begin, uint64_t length, float down, float* steps) {
    const uint64_t size = frame.header.bucket_size;
    const uint64_t first = begin / size, buckets = (begin + length - 1) / size - first + 1;
    const uint8_t* scales = frame.base + QSGD_HEADER_BYTES + 4 * first;
    const float levels = static_cast<float>(frame.header.levels);
    float bucket_steps[kBlockSteps];
    uint32_t tiny = 0;
    for (uint64_t k = 0; k < buckets; ++k) tiny |= is_tiny(load_float(scales, k));
    for (uint64_t k = 0; k < roundup16(buckets);
         ++k)  // whole vectors; what is beyond is payload and not used
        bucket_steps[k] = grid_step(load_float(scales, k), levels) * down;
    const uint64_t all = length / kStepElements;
    uint64_t bucket_end = ((first + 1) * size - begin) / kStepElements;
    for (uint64_t k = 0, at = 0; at < all; ++k, bucket_end += size / kStepElements) {
        // The last store may go beyond the bucket: the next bucket's come after it.
        for (uint64_t i = at; i < all && i < bucket_end; i += 16)
            Lanes::store(steps + i, Lanes::set(bucket_steps[k]));
        at = bucket_end;
    }
    return !tiny;
}

// Rows [FirstRow, FirstRow + Lanes::kRowsAtOnce) of one unit, whose words lie at `offset` of every frame.
template <int Bits, int FirstRow>
QSGD_INLINE void sum_rows(const DecodeJob& job, uint64_t offset, const float* steps, float* out,
                          RunningChecksum& running) {
    constexpr int kRows = Lanes::kRowsAtOnce;
    constexpr int kFirstWord = FirstRow * Bits / 32, kLastWord = ((FirstRow + kRows) * Bits - 1) / 32;
    constexpr int kWords = kLastWord - kFirstWord + 1;
    constexpr int kOld = (FirstRow * Bits + 31) / 32 - kFirstWord;  // words that earlier rows have counted
    Lanes::Float sum[kRows];
    Lanes::Sum keys[kWords];
    unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA { sum[r.value] = Lanes::zero(); });
    unroll<kOld, kWords>([&](auto w) QSGD_INLINE_LAMBDA { keys[w.value] = running.take_key(); });
    for (uint32_t f = 0; f < job.frame_count; ++f, steps += kBlockSteps) {
        const uint8_t* at = job.frames[f].base + offset + 64 * kFirstWord;
        Lanes::Int words[kWords];
        unroll<0, kWords>([&](auto w) QSGD_INLINE_LAMBDA {
            words[w.value] = Lanes::load(reinterpret_cast<const uint32_t*>(at + 64 * w.value));
        });
        unroll<kOld, kWords>([&](auto w) QSGD_INLINE_LAMBDA {
            __builtin_prefetch(at + 64 * w.value + kPrefetchBytes, 0, 2);
            running.sum = Lanes::add_terms(running.sum, words[w.value], keys[w.value]);
        });
        unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA {
            constexpr int kRow = FirstRow + r.value;
            sum[r.value] = Lanes::add(
                sum[r.value], value<Bits, kRow * Bits - 32 * kFirstWord>(words, steps[kRow / kStepRows]));
        });
    }
    const Lanes::Float factor = Lanes::set(job.factor);
    unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA {
        sum[r.value] = Lanes::canonical_nan(Lanes::multiply(sum[r.value], factor));
    });
    out += 16 * FirstRow;
    if (job.stream)
        unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA { Lanes::stream(out + 16 * r.value, sum[r.value]); });
    else
        unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA { Lanes::store(out + 16 * r.value, sum[r.value]); });
}

// `units` units whose words lie from `offset` on; steps are those of their rows. Returns the checksum's
// terms.
template <int Bits>
uint64_t sum_units(const DecodeJob& job, uint64_t offset, uint64_t units, const float* steps, float* out) {
    RunningChecksum running(offset / 8);
    for (uint64_t unit = 0; unit < units; ++unit) {
        unroll<0, 32 / Lanes::kRowsAtOnce>([&](auto part) QSGD_INLINE_LAMBDA {
            sum_rows<Bits, part.value * Lanes::kRowsAtOnce>(job, offset, steps, out, running);
        });
        offset += 64 * Bits, steps += kUnit / kStepElements, out += kUnit;
    }
    return Lanes::total(running.sum);
}

using SumUnits = uint64_t (*)(const DecodeJob& job, uint64_t offset, uint64_t units, const float* steps,
                              float* out);

inline SumUnits sum_units_of(uint32_t bits) {
    constexpr SumUnits all[] = {sum_units<2>, sum_units<3>, sum_units<4>, sum_units<5>,
                                sum_units<6>, sum_units<7>, sum_units<8>};
    return all[bits - 2];
}

}  // namespace
}  // namespace qsgd
