// Decode-and-sum of stretches of frames of which some have a variable-length codec: a few units of each frame
// at a time, so that codes and sums stay in the first-level cache.
#pragma once

#include "cpu/decode_onebit.h"
#include "cpu/dither.h"
#include "cpu/elias_reader.h"
#include "cpu/rans_decode.h"
#include "cpu/sums.h"

namespace qsgd {
namespace {

// The codes of a frame of fixed width, one by one.
inline void read_packed(const FrameView& frame, uint64_t begin, uint64_t length, int16_t* codes) {
    const uint32_t bits = code_bits(frame.header.levels);
    for (uint64_t i = 0; i < length; ++i) {
        const uint64_t unit = (begin + i) / kUnit, row = (begin + i) % kUnit / 16, lane = i % 16;
        const uint8_t* const word =
            frame.base + frame.at.payload + 64 * (bits * unit + row * bits / 32) + 4 * lane;
        const uint32_t at = static_cast<uint32_t>(row * bits % 32);
        uint32_t low, high = 0;
        memcpy(&low, word, sizeof low);
        if (at + bits > 32) memcpy(&high, word + 64, sizeof high);
        const uint64_t both = (static_cast<uint64_t>(high) << 32 | low) >> at;
        codes[i] = static_cast<int16_t>(static_cast<int32_t>(static_cast<uint32_t>(both) << (32 - bits)) >>
                                        (32 - bits));
    }
}

inline void read_ternary(const FrameView& frame, uint64_t begin, uint64_t length, int16_t* codes) {
    constexpr int kPowers[] = {1, 3, 9, 27, 81};
    for (uint64_t i = begin; i < begin + length; ++i) {
        const uint64_t unit = i / kTernaryUnit, row = i % kTernaryUnit / 16;
        const int byte = frame.base[frame.at.payload + 16 * unit + i % 16];
        codes[i - begin] = static_cast<int16_t>(byte / kPowers[row] % 3 - 1);
    }
}

class StretchDecoder {
  public:
    StretchDecoder(const DecodeJob& job, ReadPosition* positions) : job_(job), positions_(positions) {}

    // The sum of a stretch; returns the first frame whose payload is wrong there, or frame_count.
    uint32_t decode(uint64_t stretch) {
        const uint64_t units = units_of_stretch(job_.count, stretch);
        for (uint32_t f = 0; f < job_.frame_count; ++f) open(f, stretch, units);
        for (uint64_t u = (units - 1) / kReadUnits * kReadUnits;; u -= kReadUnits) {  // as rans is decoded
            const uint64_t begin = stretch * kStretch + u * kUnit, left = job_.count - begin;
            const uint64_t length = left < kReadElements ? left : kReadElements;
            sums_.clear(length);
            for (uint32_t f = 0; f < job_.frame_count; ++f) {
                read(f, stretch, units, u, begin, length);
                add(job_.frames[f], begin, length);
            }
            sums_.write(job_, begin, length, job_.factor);
            if (u == 0) break;
        }
        uint32_t bad = 0;
        while (bad < job_.frame_count && finished(bad, units)) ++bad;
        return bad;
    }

  private:
    RansReader rans_reader(uint32_t f) const {
        return RansReader(job_.frames[f].coded->rans, positions_[f].rans);
    }
    EliasReader elias_reader(uint32_t f) const { return EliasReader(job_.frames[f], positions_[f].elias); }

    void open(uint32_t f, uint64_t stretch, uint64_t units) {
        const FrameView& frame = job_.frames[f];
        if (is_elias(frame.header.codec)) return elias_reader(f).open(stretch);
        if (frame.header.codec != QSGD_CODEC_RANS) return;
        const CodedPayload& coded = *frame.coded;
        rans_reader(f).open(coded.stretches[stretch], coded.lengths + 4 * kRansStreams * stretch, units);
    }

    void read(uint32_t f, uint64_t stretch, uint64_t units, uint64_t first, uint64_t begin, uint64_t length) {
        const FrameView& frame = job_.frames[f];
        switch (frame.header.codec) {
            case QSGD_CODEC_RANS: {
                const uint64_t last = first + kReadUnits < units ? first + kReadUnits : units;
                return rans_reader(f).read(stretch * (kStretch / kUnit), units, first, last, codes_);
            }
            case QSGD_CODEC_ELIAS_DENSE:
            case QSGD_CODEC_ELIAS_SPARSE:
                return elias_reader(f).read(begin, length, codes_);
            case QSGD_CODEC_ONEBIT:
                return;  // it has values instead
            case QSGD_CODEC_TERNARY:
                return read_ternary(frame, begin, length, codes_);
            default:
                return read_packed(frame, begin, length, codes_);
        }
    }

    void add(const FrameView& frame, uint64_t begin, uint64_t length) {
        if (frame.header.codec == QSGD_CODEC_ONEBIT)
            return sums_.add_values(onebit_values_.read(frame, begin, length), length);
        if (!is_subtractive(frame.header)) return sums_.add(frame, begin, length, codes_, 1);
        undo_dither(frame.header, begin, length, codes_, 1, dithered_);
        sums_.add(frame, begin, length, dithered_, 1);
    }

    bool finished(uint32_t f, uint64_t units) const {
        const uint8_t codec = job_.frames[f].header.codec;
        return is_elias(codec) ? !positions_[f].elias.bad
                               : codec != QSGD_CODEC_RANS || rans_reader(f).finished(units);
    }

    const DecodeJob& job_;
    ReadPosition* const positions_;
    Sums<kReadElements> sums_;
    OnebitValues<kReadElements> onebit_values_;
    alignas(64) int16_t codes_[kReadElements + 16];  // a vector may begin at the last
    alignas(64) float dithered_[kReadElements + 16];
};

uint32_t decode_stretches(const DecodeJob& job, uint64_t first, uint64_t last, ReadPosition* positions) {
    StretchDecoder decoder(job, positions);
    uint32_t bad = job.frame_count;
    for (; first < last; ++first) {
        const uint32_t here = decoder.decode(first);
        if (here < bad) bad = here;
    }
    return bad;
}

}  // namespace
}  // namespace qsgd
