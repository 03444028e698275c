// Stretches of a gradient to range-ANS streams (docs/wire_format.md, section 6).
#pragma once

#include "cpu/encode.h"
#include "rans_choice.h"

namespace qsgd {
namespace {

constexpr uint64_t kFetchGroups = 5;

struct Magnitudes {
    uint32_t sum = 0;
    uint16_t largest = 0;
    explicit Magnitudes(const int16_t* codes) {
        for (uint64_t i = 0; i < kUnit; ++i) {
            const auto magnitude = static_cast<uint16_t>(codes[i] < 0 ? -codes[i] : codes[i]);
            sum += magnitude;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
};

// Codes of the units with these numbers, one after the other.
void sample_codes(const EncodeJob& job, const uint64_t* units, uint64_t count, int16_t* codes) {
    BlockEncoder quantizer(job, 0);
    for (uint64_t k = 0; k < count; ++k) {
        const uint64_t begin = units[k] * kUnit, left = job.spec.count - begin;
        quantizer.start(begin);
        quantizer.codes<false>(begin, begin + (left < kUnit ? left : kUnit), codes + kUnit * k);
    }
}

// Codes each group of units just after it was quantized: memory brings the next ones meanwhile.
class StretchEncoder {
  public:
    // The first stretch is number `first`.
    StretchEncoder(const EncodeJob& job, const RansJob& rans, uint64_t first, uint16_t* words)
        : job_(job), rans_(rans), words_(words), quantizer_(job, first * kStretch) {}

    // The streams of stretch number `stretch`, the one after the last call's, to `out`. Returns their end.
    uint8_t* encode(uint64_t stretch, uint8_t* out) {
        const uint64_t units = units_of_stretch(job_.spec.count, stretch), streams = rans_streams(units);
        const uint64_t base = stretch * (kStretch / kUnit);
        for (uint64_t s = 0; s < streams; ++s) {
            for (uint32_t& state : streams_[s].states) state = kRansLow;
            streams_[s].out = words_ + s * kRansScratchWords;
        }
        for (uint64_t first = 0; first < units; first += kGroupUnits)
            encode_group(base + first, first + kGroupUnits < units ? kGroupUnits : units - first, streams);
        uint8_t* lengths = rans_.lengths + 4 * kRansStreams * stretch;
        for (uint64_t s = 0; s < streams; ++s, lengths += 4) out = append(s, lengths, out);
        return out;
    }

  private:
    static constexpr uint64_t kGroupUnits = 8;
    static_assert(kGroupUnits % kRansStreams == 0, "a group begins with the first stream");

    // Units [unit, unit + count) of the tensor.
    void encode_group(uint64_t unit, uint64_t count, uint64_t streams) {
        const uint64_t begin = unit * kUnit, end = begin + count * kUnit;
        quantizer_.codes<false>(begin, end < job_.spec.count ? end : job_.spec.count, codes_);
        classify(unit, count);
        for (uint64_t k = 0; k < count; k += streams)
            encode_row_of_streams(unit, k, k + streams < count ? k + streams : count);
    }

    // Where the values lie that are quantized some groups later.
    const char* later(uint64_t unit) const {
        const uint64_t size = job_.spec.dtype == QSGD_FLOAT32 ? 4 : 2;
        return static_cast<const char*>(job_.gradient) + (unit + kFetchGroups * kGroupUnits) * kUnit * size;
    }

    void classify(uint64_t unit, uint64_t count) {
        const RansEncoder& e = *rans_.encoder;
        if (e.choice.mode == kOneClass && job_.spec.levels <= e.plain[0]) {
            memset(bytes_, 1, count), memset(plain_, 1, count);
            return;
        }
        for (uint64_t k = 0; k < count; ++k) {
            const Magnitudes magnitudes(codes_ + kUnit * k);
            bytes_[k] =
                static_cast<uint8_t>(choose_unit_byte(e.choice, magnitudes.sum, unit + k, job_.spec.count));
            plain_[k] = magnitudes.largest <= e.plain[rans_class(bytes_[k], e.choice.classes)];
        }
        bytes_[count] = 0;
        if (e.choice.mode == kOneClass) return;
        for (uint64_t k = 0; k < count; k += 2)
            rans_.units[(unit + k) / 2] = static_cast<uint8_t>(bytes_[k] | bytes_[k + 1] << 4);
    }

    // Units [first, last) of the group, each in its own stream; those without a class are all zeros.
    void encode_row_of_streams(uint64_t unit, uint64_t first, uint64_t last) {
        RansUnit units[kRansStreams];
        RansEncodeStream* streams[kRansStreams];
        uint64_t count = 0;
        const uint32_t columns = rans_.encoder->choice.columns;
        for (uint64_t k = first; k < last; ++k) {
            if (bytes_[k] == 0) continue;
            units[count] = {codes_ + kUnit * k, bytes_[k], columns ? (unit + k) * kUnit % columns : 0,
                            plain_[k] != 0, later(unit + k)};
            streams[count++] = &streams_[k - first];
        }
        if (count == kRansStreams) return RansRows::encode<kRansStreams>(*rans_.encoder, units, streams);
        for (uint64_t k = 0; k < count; ++k) RansRows::encode<1>(*rans_.encoder, units + k, streams + k);
    }

    uint8_t* append(uint64_t s, uint8_t* length, uint8_t* out) const {
        const uint16_t* const words = words_ + s * kRansScratchWords;
        const auto count = static_cast<uint32_t>(streams_[s].out - words);
        memcpy(length, &count, sizeof count);
        memcpy(out, words, 2 * static_cast<uint64_t>(count));
        out += 2 * static_cast<uint64_t>(count);
        memcpy(out, streams_[s].states, kRansStateBytes);
        return out + kRansStateBytes;
    }

    const EncodeJob& job_;
    const RansJob& rans_;
    uint16_t* const words_;
    BlockEncoder quantizer_;
    alignas(64) int16_t codes_[kGroupUnits * kUnit];
    uint8_t bytes_[kGroupUnits + 1], plain_[kGroupUnits];
    RansEncodeStream streams_[kRansStreams];
};

// Stretches [first, last), one after the other, to `out`; returns their end.
uint8_t* encode_rans(const EncodeJob& job, const RansJob& rans, uint64_t first, uint64_t last,
                     uint16_t* words, uint8_t* out) {
    StretchEncoder encoder(job, rans, first, words);
    for (uint64_t stretch = first; stretch < last; ++stretch) out = encoder.encode(stretch, out);
    return out;
}

}  // namespace
}  // namespace qsgd
