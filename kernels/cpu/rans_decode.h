// Range-ANS streams to codes, a few units of each at a time (docs/wire_format.md, section 6).
#pragma once

#include "cpu/jobs.h"

namespace qsgd {
namespace {

class RansReader {
  public:
    explicit RansReader(const RansDecoder& decoder, RansDecodeStream* streams)
        : decoder_(decoder), streams_(streams) {}

    // Opens the streams of a stretch of `units` units, which begin at `bytes`; `lengths` are their words.
    void open(const uint8_t* bytes, const uint8_t* lengths, uint64_t units) {
        for (uint64_t s = 0; s < rans_streams(units); ++s, lengths += 4) {
            RansDecodeStream& stream = streams_[s];
            uint32_t words;
            memcpy(&words, lengths, sizeof words);
            stream.begin = bytes;
            stream.in = bytes + 2 * static_cast<uint64_t>(words);
            stream.bad = 0;
            memcpy(stream.states, stream.in, kRansStateBytes);
            for (const uint32_t state : stream.states) stream.bad |= state < kRansLow || state >> 31;
            bytes = stream.in + kRansStateBytes;
        }
    }

    // The codes of units [first, last) of the stretch of `units` units that begins with the tensor's unit
    // number `base`: the last ones first, then those before.
    void read(uint64_t base, uint64_t units, uint64_t first, uint64_t last, int16_t* codes) {
        const uint64_t streams = rans_streams(units);
        for (uint64_t u = first + (last - first - 1) / streams * streams;; u -= streams) {
            read_group(base + u, (last - u < streams ? last - u : streams), codes + kUnit * (u - first));
            if (u == first) break;
        }
    }

    // Whether all streams are used up as their encoder left them.
    bool finished(uint64_t units) const {
        uint32_t bad = 0;
        for (uint64_t s = 0; s < rans_streams(units); ++s) {
            bad |= streams_[s].bad | (streams_[s].in != streams_[s].begin);
            for (const uint32_t state : streams_[s].states) bad |= state != kRansLow;
        }
        return !bad;
    }

  private:
    void read_group(uint64_t unit, uint64_t count, int16_t* codes) {
        RansUnit units[kRansStreams];
        RansDecodeStream* streams[kRansStreams];
        uint64_t coded = 0;
        for (uint64_t k = 0; k < count; ++k) {
            const uint32_t byte = unit_byte(decoder_, unit + k);
            if (byte == 0) {
                memset(codes + kUnit * k, 0, kUnit * sizeof *codes);
                continue;
            }
            const uint64_t column = decoder_.columns ? (unit + k) * kUnit % decoder_.columns : 0;
            units[coded] = {codes + kUnit * k, byte, column, false, nullptr};
            streams[coded++] = streams_ + k;
        }
        if (coded == kRansStreams) return RansRows::decode<kRansStreams>(decoder_, units, streams);
        for (uint64_t k = 0; k < coded; ++k) RansRows::decode<1>(decoder_, units + k, streams + k);
    }

    const RansDecoder& decoder_;
    RansDecodeStream* const streams_;
};

}  // namespace
}  // namespace qsgd
