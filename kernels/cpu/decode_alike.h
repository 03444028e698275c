// Decode-and-sum of frames that are packed alike: sums stay in registers while all frames add to them.
#pragma once

#include "cpu/checksum.h"
#include "cpu/jobs.h"
#include "cpu/unpack.h"

namespace qsgd {
namespace {

constexpr uint64_t kTernarySpan = 4 * kTernaryUnit;
constexpr uint64_t kPrefetchBytes = 2048;  // how far ahead frames are read

// The buckets that meet the elements [begin, begin + length): the same in all frames that are summed
// together.
struct BucketRange {
    uint64_t first, count;
    uint64_t steps;         // places of so many rows that the elements have,
    uint64_t first_steps;   // of which the first bucket takes so many
    uint64_t bucket_steps;  // and each further one these
    BucketRange(uint64_t begin, uint64_t length, uint64_t size, int rows) : first(begin / size) {
        const uint64_t left = size - begin % size, elements = 16 * rows;
        count = left < length ? 1 + ceil_div(length - left, size) : 1;
        steps = length / elements;
        first_steps = left / elements;
        bucket_steps = size / elements;
    }
};

// The steps of a frame for these buckets, times `code_scale`: one for so many rows as the range
// says. False if a bucket's scale is tiny.
inline bool find_steps(const FrameView& frame, const BucketRange& range, float code_scale, float* steps) {
    float of_bucket[kGroupSteps];
    uint32_t tiny = 0;
    for (uint64_t k = 0; k < range.count; ++k) tiny |= is_tiny(scale_of(frame, range.first + k));
    // Whole vectors; the rest is payload.
    const bool one_each = range.bucket_steps == 1;
    bucket_steps(frame, range.first, roundup16(range.count), code_scale, one_each ? steps : of_bucket);
    if (one_each) return !tiny;
    for (uint64_t k = 0, at = 0, end = range.first_steps; at < range.steps;
         ++k, at = end, end += range.bucket_steps)
        // The last store may go beyond the bucket: the next bucket's come after it.
        for (uint64_t i = at; i < end && i < range.steps; i += 16)
            Lanes::store(steps + i, Lanes::set(of_bucket[k]));
    return !tiny;
}

template <int Bits, int At>
QSGD_INLINE Lanes::Float value(const Lanes::Int* words, float step) {
    if constexpr (Bits <= Lanes::kLookupBits)
        return Lanes::lookup<Bits>(code_at_bottom<Bits, At>(words), step);
    else
        return Lanes::multiply(scaled_code<Bits, At>(words), Lanes::set(step));
}

QSGD_INLINE Lanes::Float ternary_value(Lanes::Int code, float step) {
    if constexpr (2 <= Lanes::kLookupBits)
        return Lanes::lookup<2>(code, step);
    else
        return Lanes::multiply(Lanes::convert(code), Lanes::set(step));
}

template <int Rows>
QSGD_INLINE void finish_rows(const DecodeJob& job, Lanes::Float (&sum)[Rows], float* out) {
    const Lanes::Float factor = Lanes::set(job.factor);
    unroll<0, Rows>([&](auto r) QSGD_INLINE_LAMBDA {
        sum[r.value] = Lanes::canonical_nan(Lanes::multiply(sum[r.value], factor));
    });
    if (job.stream)
        unroll<0, Rows>([&](auto r) QSGD_INLINE_LAMBDA { Lanes::stream(out + 16 * r.value, sum[r.value]); });
    else
        unroll<0, Rows>([&](auto r) QSGD_INLINE_LAMBDA { Lanes::store(out + 16 * r.value, sum[r.value]); });
}

// Rows [FirstRow, FirstRow + Lanes::kRowsAtOnce) of one unit, whose words lie at `offset` of every frame and
// whose steps begin with number `first_step`.
template <int Bits, int FirstRow, int StepRows>
QSGD_INLINE void sum_rows(const DecodeJob& job, FrameWork* work, uint64_t offset, uint64_t first_step,
                          float* out, Keys& keys_left) {
    constexpr int kRows = Lanes::kRowsAtOnce;
    constexpr int kFirstWord = FirstRow * Bits / 32, kLastWord = ((FirstRow + kRows) * Bits - 1) / 32;
    constexpr int kWords = kLastWord - kFirstWord + 1;
    constexpr int kOld = (FirstRow * Bits + 31) / 32 - kFirstWord;  // words that earlier rows have counted
    Lanes::Float sum[kRows];
    Lanes::Sum keys[kWords];
    unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA { sum[r.value] = Lanes::zero(); });
    unroll<kOld, kWords>([&](auto w) QSGD_INLINE_LAMBDA { keys[w.value] = keys_left.take(); });
    for (FrameWork* frame = work; frame < work + job.frame_count; ++frame) {
        const uint8_t* at = frame->base + offset + 64 * kFirstWord;
        Lanes::Int words[kWords];
        unroll<0, kWords>([&](auto w) QSGD_INLINE_LAMBDA {
            words[w.value] = Lanes::load(reinterpret_cast<const uint32_t*>(at + 64 * w.value));
        });
        unroll<kOld, kWords>(
            [&](auto w) QSGD_INLINE_LAMBDA { __builtin_prefetch(at + 64 * w.value + kPrefetchBytes, 0, 2); });
        if constexpr (kOld < kWords) add_to_frame<kOld, kWords>(frame->sums, words, keys);
        unroll<0, kRows>([&](auto r) QSGD_INLINE_LAMBDA {
            constexpr int kRow = FirstRow + r.value;
            const float step = frame->steps[first_step + kRow / StepRows];
            sum[r.value] = Lanes::add(sum[r.value], value<Bits, kRow * Bits - 32 * kFirstWord>(words, step));
        });
    }
    finish_rows(job, sum, out + 16 * FirstRow);
}

// `units` units, whose words lie from `offset` on, and whose steps begin with number `first_step`.
template <int Bits, int StepRows>
void sum_units(const DecodeJob& job, FrameWork* work, uint64_t offset, uint64_t first_step, uint64_t units,
               float* out) {
    Keys keys(offset / 8);
    for (; units > 0; --units, offset += 64 * Bits, first_step += 32 / StepRows, out += kUnit)
        unroll<0, 32 / Lanes::kRowsAtOnce>([&](auto part) QSGD_INLINE_LAMBDA {
            constexpr int kFirstRow = part.value * Lanes::kRowsAtOnce;
            sum_rows<Bits, kFirstRow, StepRows>(job, work, offset, first_step, out, keys);
        });
}

// The same of ternary frames, in spans of four units: 20 rows in 64 bytes.
inline void sum_ternary(const DecodeJob& job, FrameWork* work, uint64_t offset, uint64_t first_step,
                        uint64_t spans, float* out) {
    Keys keys(offset / 8);
    for (; spans > 0;
         --spans, offset += 64, first_step += kTernarySpan / kFewestElements, out += kTernarySpan) {
        const Lanes::Sum key = keys.take();
        unroll<0, 4>([&](auto unit) QSGD_INLINE_LAMBDA {
            Lanes::Float sum[5];
            unroll<0, 5>([&](auto r) QSGD_INLINE_LAMBDA { sum[r.value] = Lanes::zero(); });
            for (FrameWork* frame = work; frame < work + job.frame_count; ++frame) {
                const uint8_t* at = frame->base + offset;
                if (unit.value == 0) {
                    __builtin_prefetch(at + kPrefetchBytes, 0, 2);
                    const Lanes::Int words = Lanes::load(reinterpret_cast<const uint32_t*>(at));
                    add_to_frame<0, 1>(frame->sums, &words, &key);
                }
                const float* steps = frame->steps + first_step;
                each_ternary_row(at + 16 * unit.value, [&](auto r, Lanes::Int code) QSGD_INLINE_LAMBDA {
                    const float step = steps[(5 * unit.value + r.value) / kFewRows];
                    sum[r.value] = Lanes::add(sum[r.value], ternary_value(code, step));
                });
            }
            finish_rows(job, sum, out + kTernaryUnit * unit.value);
        });
    }
}

using Sum = void (*)(const DecodeJob& job, FrameWork* work, uint64_t offset, uint64_t first_step,
                     uint64_t count, float* out);

template <int StepRows>
Sum sum_units_of(uint32_t bits) {
    constexpr Sum all[] = {sum_units<2, StepRows>, sum_units<3, StepRows>, sum_units<4, StepRows>,
                           sum_units<5, StepRows>, sum_units<6, StepRows>, sum_units<7, StepRows>,
                           sum_units<8, StepRows>};
    return all[bits - 2];
}

// A kind of frames: how many elements are summed at a time, to how many bytes they are packed, how many rows
// share a step.
struct Kind {
    uint64_t elements, bytes;
    int step_rows;
    float code_scale;
    Sum sum;
};

inline Kind kind_of(const Header& h) {
    if (h.codec == QSGD_CODEC_TERNARY) return {kTernarySpan, 64, kFewRows, 1, sum_ternary};
    const uint32_t bits = code_bits(h.levels);
    const bool many = h.bucket_size % (16 * kManyRows) == 0;
    return {kUnit, 64 * bits, many ? kManyRows : kFewRows, bits <= Lanes::kLookupBits ? 1 : code_scale(bits),
            many ? sum_units_of<kManyRows>(bits) : sum_units_of<kFewRows>(bits)};
}

}  // namespace
}  // namespace qsgd
