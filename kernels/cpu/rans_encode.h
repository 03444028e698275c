// Stretches of a gradient to range-ANS streams (docs/wire_format.md, section 6).
#pragma once

#include "cpu/encode.h"
#include "cpu/rans_choice.h"

namespace qsgd {
namespace {

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
    for (uint64_t k = 0; k < count; ++k) {
        const uint64_t begin = units[k] * kUnit, left = job.spec.count - begin;
        BlockEncoder(job, begin).codes(begin, begin + (left < kUnit ? left : kUnit), codes + kUnit * k);
    }
}

class StretchEncoder {
  public:
    StretchEncoder(const EncodeJob& job, const RansJob& rans, const RansScratch& scratch)
        : job_(job), rans_(rans), scratch_(scratch) {}

    // The streams of stretch number `stretch`, whose codes are in the scratch memory, to `out`. Returns their end.
    uint8_t* encode(uint64_t stretch, uint8_t* out) {
        const uint64_t units = units_of_stretch(job_.spec.count, stretch), streams = rans_streams(units);
        classify(stretch, units);
        for (uint64_t s = 0; s < streams; ++s) {
            for (uint32_t& state : streams_[s].states) state = kRansLow;
            streams_[s].out = scratch_.words + s * kRansScratchWords;
        }
        for (uint64_t first = (units - 1) / streams * streams;; first -= streams) {
            encode_group(stretch, first, first + streams < units ? first + streams : units);
            if (first == 0) break;
        }
        uint8_t* lengths = rans_.lengths + 4 * kRansStreams * stretch;
        for (uint64_t s = 0; s < streams; ++s, lengths += 4) out = append(s, lengths, out);
        return out;
    }

  private:
    void classify(uint64_t stretch, uint64_t units) {
        const RansEncoder& e = *rans_.encoder;
        if (e.choice.mode == kOneClass && job_.spec.levels <= e.plain[0]) {
            memset(bytes_, 1, units), memset(plain_, 1, units);
            return;
        }
        for (uint64_t u = 0; u < units; ++u) {
            const uint64_t unit = stretch * (kStretch / kUnit) + u, left = job_.spec.count - unit * kUnit;
            const Magnitudes magnitudes(codes_of(u));
            bytes_[u] = static_cast<uint8_t>(
                choose_unit_byte(e.choice, magnitudes.sum, unit * kUnit, left < kUnit ? left : kUnit));
            plain_[u] = magnitudes.largest <= e.plain[rans_class(bytes_[u], e.choice.classes)];
        }
        bytes_[units] = 0;
        if (e.choice.mode == kOneClass) return;
        for (uint64_t u = 0; u < units; u += 2)
            rans_.units[(stretch * (kStretch / kUnit) + u) / 2] = static_cast<uint8_t>(bytes_[u] | bytes_[u + 1] << 4);
    }

    int16_t* codes_of(uint64_t unit) const { return scratch_.codes + kUnit * unit; }

    // Units [first, last) of the stretch, each in its own stream; those without a class are all zeros.
    void encode_group(uint64_t stretch, uint64_t first, uint64_t last) {
        RansUnit units[kRansStreams];
        RansEncodeStream* streams[kRansStreams];
        uint64_t count = 0;
        const uint32_t columns = rans_.encoder->choice.columns;
        for (uint64_t u = first; u < last; ++u) {
            if (bytes_[u] == 0) continue;
            const uint64_t element = stretch * kStretch + u * kUnit;
            units[count] = {codes_of(u), bytes_[u], columns ? element % columns : 0, plain_[u] != 0};
            streams[count++] = &streams_[u - first];
        }
        if (count == kRansStreams) return RansRows::encode<kRansStreams>(*rans_.encoder, units, streams);
        for (uint64_t k = 0; k < count; ++k) RansRows::encode<1>(*rans_.encoder, units + k, streams + k);
    }

    uint8_t* append(uint64_t s, uint8_t* length, uint8_t* out) const {
        const uint16_t* const words = scratch_.words + s * kRansScratchWords;
        const auto count = static_cast<uint32_t>(streams_[s].out - words);
        memcpy(length, &count, sizeof count);
        memcpy(out, words, 2 * static_cast<uint64_t>(count));
        out += 2 * static_cast<uint64_t>(count);
        memcpy(out, streams_[s].states, kRansStateBytes);
        return out + kRansStateBytes;
    }

    const EncodeJob& job_;
    const RansJob& rans_;
    const RansScratch scratch_;
    uint8_t bytes_[kStretch / kUnit + 1], plain_[kStretch / kUnit];
    RansEncodeStream streams_[kRansStreams];
};

// Stretches [first, last), one after the other, to `out`; returns their end.
uint8_t* encode_rans(const EncodeJob& job, const RansJob& rans, uint64_t first, uint64_t last,
                     const RansScratch& scratch, uint8_t* out) {
    BlockEncoder quantizer(job, first * kStretch);
    StretchEncoder encoder(job, rans, scratch);
    for (uint64_t stretch = first; stretch < last; ++stretch) {
        const uint64_t begin = stretch * kStretch, left = job.spec.count - begin;
        quantizer.codes(begin, begin + (left < kStretch ? left : kStretch), scratch.codes);
        out = encoder.encode(stretch, out);
    }
    return out;
}

}  // namespace
}  // namespace qsgd
