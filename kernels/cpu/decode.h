// Decode-and-sum of a range of blocks (docs/wire_format.md, section 10): fused when all frames are packed
// alike, otherwise frame by frame through codes in the first-level cache.
#pragma once

#include "cpu/checksum.h"
#include "cpu/elements.h"
#include "cpu/jobs.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

inline float frame_scale(const FrameView& frame, uint64_t bucket) {
    return load_element<float>(frame.base + QSGD_HEADER_BYTES, bucket);
}

// The signed value of the packed code at bit At of a lane's string, words[0] holding bit 32 * First.
template <int Bits, int At, int First>
QSGD_INLINE inline Lanes::Int code_at_top(const Lanes::Int* words) {  // the code in the lane's top bits
    constexpr int word = At / 32 - First, bit = At % 32, end = bit + Bits;
    if constexpr (end <= 32)
        return Lanes::shift_left<32 - end>(words[word]);
    else
        return Lanes::bit_or(Lanes::shift_right<(end > 32) ? end - 32 : 0>(
                                 Lanes::bit_and(words[word], Lanes::set(0xFFFFFFFFu << bit))),
                             Lanes::shift_left<(end > 32) ? 64 - end : 0>(words[word + 1]));
}

template <int Bits, int At, int First>
QSGD_INLINE inline Lanes::Int code_at_bottom(
    const Lanes::Int* words) {  // the code in the low bits, others above it
    constexpr int word = At / 32 - First, bit = At % 32;
    const Lanes::Int low = Lanes::shift_right<bit>(words[word]);
    if constexpr (bit + Bits <= 32)
        return low;
    else
        return Lanes::bit_or(low, Lanes::shift_left<bit == 0 ? 0 : 32 - bit>(words[word + 1]));
}

// Rows [FirstRow, FirstRow + Rows) of one unit, summed over the frames and finished.
template <class T, int Bits, int FirstRow, int Rows, bool Stream>
QSGD_INLINE inline void sum_rows(const DecodeJob& job, uint64_t offset, const float* tables,
                                 typename T::Element* out, RunningChecksum& running) {
    constexpr int kFirstWord = FirstRow * Bits / 32, kLastWord = ((FirstRow + Rows) * Bits - 1) / 32;
    constexpr int kWords = kLastWord - kFirstWord + 1;
    constexpr int kFirstNew = (FirstRow * Bits + 31) / 32;  // words before it were counted with earlier rows
    Lanes::Float sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = Lanes::zero();
    Lanes::Sum keys[kWords];
    for (int w = kFirstNew - kFirstWord; w < kWords; ++w)
        keys[w] = running.key, running.key = Lanes::next_key(running.key);
    for (uint32_t f = 0; f < job.frame_count; ++f) {
        const uint8_t* payload = job.frames[f].base + offset;
        Lanes::Int words[kWords];
        for (int w = 0; w < kWords; ++w) {
            words[w] = Lanes::load(reinterpret_cast<const uint32_t*>(payload + 64 * (kFirstWord + w)));
            if (w >= kFirstNew - kFirstWord) running.sum = Lanes::add_terms(running.sum, words[w], keys[w]);
        }
        const float* table = tables + kTableFloats * f;
        if constexpr (Lanes::Table<Bits>::kLookup) {
            const Lanes::Table<Bits> values(table);
            unroll<0, Rows>([&](auto r) QSGD_INLINE {
                constexpr int kRow = decltype(r)::value;
                sum[kRow] = Lanes::add(
                    sum[kRow], values(code_at_bottom<Bits, (FirstRow + kRow) * Bits, kFirstWord>(words)));
            });
        } else {
            const Lanes::Float step = Lanes::set(table[1]);  // the value of code 1
            unroll<0, Rows>([&](auto r) QSGD_INLINE {
                constexpr int kRow = decltype(r)::value;
                const Lanes::Int top = code_at_top<Bits, (FirstRow + kRow) * Bits, kFirstWord>(words);
                const Lanes::Float code = Lanes::convert(Lanes::shift_right_signed<32 - Bits>(top));
                sum[kRow] = Lanes::add(sum[kRow], Lanes::multiply(code, step));
            });
        }
    }
    const Lanes::Float factor = Lanes::set(job.factor);
    for (int r = 0; r < Rows; ++r) {
        const Lanes::Float result = Lanes::multiply(sum[r], factor);
        if constexpr (Stream)
            Lanes::stream(out + 16 * (FirstRow + r), Lanes::canonical_nan(result));
        else
            T::store(out + 16 * (FirstRow + r), result);
    }
}

template <class T, int Bits, bool Stream>
void sum_unit(const DecodeJob& job, uint64_t offset, const float* tables, typename T::Element* out,
              RunningChecksum& running) {
    constexpr int kRows = Lanes::kRowsAtOnce;
    unroll<0, 32 / kRows>([&](auto part) QSGD_INLINE {
        sum_rows<T, Bits, kRows* decltype(part)::value, kRows, Stream>(job, offset, tables, out, running);
    });
}

// The value of each code, for every frame; false if a bucket is tiny or the unit spans several.
inline bool unit_tables(const DecodeJob& job, uint64_t begin, int bits, float* tables) {
    const uint64_t size = job.frames[0].header.bucket_size, bucket = begin / size;
    if (bucket != (begin + kUnit - 1) / size) return false;
    for (uint32_t f = 0; f < job.frame_count; ++f) {
        const float scale = frame_scale(job.frames[f], bucket);
        if (is_tiny(scale)) return false;
        const Lanes::Float step =
            Lanes::set(grid_step(scale, static_cast<float>(job.frames[f].header.levels)));
        const int signed_zero = 1 << (bits - 1);
        for (int half = 0; half < 32; half += 16) {
            float codes[16];
            for (int k = 0; k < 16; ++k)
                codes[k] =
                    static_cast<float>((((half + k) & (2 * signed_zero - 1)) ^ signed_zero) - signed_zero);
            Lanes::store(tables + kTableFloats * f + half, Lanes::multiply(Lanes::load(codes), step));
        }
    }
    return true;
}

// A full block of frames that are packed alike; false if it must be done frame by frame.
template <class T, int Bits>
bool sum_alike_block(const DecodeJob& job, uint64_t block, float* tables, uint64_t& terms) {
    const uint64_t first_unit = block * (kBlock / kUnit);
    const uint64_t offset = job.frames[0].at.payload + 64 * Bits * first_unit;
    RunningChecksum running(offset / 8);
    for (uint64_t unit = 0; unit < kBlock / kUnit; ++unit) {
        const uint64_t begin = (first_unit + unit) * kUnit;
        if (!unit_tables(job, begin, Bits, tables)) return false;
        auto* out = const_cast<typename T::Element*>(element_at<typename T::Element>(job.out, begin));
        const uint64_t at = offset + 64 * Bits * unit;
        if constexpr (sizeof(typename T::Element) == 4) {
            if (job.stream) {
                sum_unit<T, Bits, true>(job, at, tables, out, running);
                continue;
            }
        }
        sum_unit<T, Bits, false>(job, at, tables, out, running);
    }
    terms += Lanes::total(running.sum);
    return true;
}

template <class T>
bool sum_alike(const DecodeJob& job, uint64_t block, float* tables, uint64_t& terms) {
    switch (code_bits(job.frames[0].header.levels)) {
        case 2:
            return sum_alike_block<T, 2>(job, block, tables, terms);
        case 3:
            return sum_alike_block<T, 3>(job, block, tables, terms);
        case 4:
            return sum_alike_block<T, 4>(job, block, tables, terms);
        case 5:
            return sum_alike_block<T, 5>(job, block, tables, terms);
        case 6:
            return sum_alike_block<T, 6>(job, block, tables, terms);
        case 7:
            return sum_alike_block<T, 7>(job, block, tables, terms);
        default:
            return sum_alike_block<T, 8>(job, block, tables, terms);
    }
}

template <int Bits>
void unpack_unit(const uint32_t* words, int8_t* codes) {
    Lanes::Int lanes[Bits];
    for (int w = 0; w < Bits; ++w) lanes[w] = Lanes::load(words + 16 * w);
    unroll<0, 32>([&](auto r) QSGD_INLINE {
        constexpr int kRow = decltype(r)::value;
        const Lanes::Int code =
            Lanes::shift_right_signed<32 - Bits>(code_at_top<Bits, kRow * Bits, 0>(lanes));
        Lanes::store_low_bytes(codes + 16 * kRow, code);
    });
}

inline void unpack_unit(int bits, const uint32_t* words, int8_t* codes) {
    switch (bits) {
        case 2:
            return unpack_unit<2>(words, codes);
        case 3:
            return unpack_unit<3>(words, codes);
        case 4:
            return unpack_unit<4>(words, codes);
        case 5:
            return unpack_unit<5>(words, codes);
        case 6:
            return unpack_unit<6>(words, codes);
        case 7:
            return unpack_unit<7>(words, codes);
        default:
            return unpack_unit<8>(words, codes);
    }
}

// Sixteen bytes to five rows of digits - 1: the byte as a fraction of 243, whose leading base-3 digit comes
// first.
inline void unpack_ternary(const uint8_t* bytes, int8_t* codes) {
    const Lanes::Int low16 = Lanes::set(0xFFFFu), minus_one = Lanes::set(0xFFFFFFFFu), three = Lanes::set(3u);
    const Lanes::Int byte =
        Lanes::bit_and(Lanes::load_bytes(reinterpret_cast<const int8_t*>(bytes)), Lanes::set(0xFFu));
    Lanes::Int fraction =
        Lanes::bit_and(Lanes::multiply(byte, Lanes::set(270u)), low16);  // 270 = ceil(2^16 / 243)
    for (int row = 4; row >= 0; --row) {
        const Lanes::Int digits = Lanes::multiply(fraction, three);
        Lanes::store_low_bytes(codes + 16 * row, Lanes::add(Lanes::shift_right<16>(digits), minus_one));
        fraction = Lanes::bit_and(digits, low16);
    }
}

template <class T>
class BlockDecoder {
  public:
    explicit BlockDecoder(const DecodeJob& job) : job_(job) {}

    uint64_t decode(uint64_t block, uint64_t length) {
        memset(sum_, 0, sizeof sum_);
        uint64_t terms = 0;
        for (uint32_t f = 0; f < job_.frame_count; ++f) {
            const FrameView& frame = job_.frames[f];
            terms += frame.header.codec == QSGD_CODEC_TERNARY ? unpack_ternary_block(frame, block, length)
                                                              : unpack_packed_block(frame, block, length);
            add_values(frame, block * kBlock, length);
        }
        finish(block * kBlock, length);
        return terms;
    }

  private:
    uint64_t unpack_packed_block(const FrameView& frame, uint64_t block, uint64_t length) {
        const int bits = static_cast<int>(code_bits(frame.header.levels));
        const uint64_t unit_bytes = 64 * static_cast<uint64_t>(bits);
        const uint64_t offset = frame.at.payload + unit_bytes * (kBlock / kUnit) * block;
        const uint64_t bytes = payload_bytes(QSGD_CODEC_PACKED, frame.header.levels, length);
        uint32_t words[16 * 8];
        for (uint64_t at = 0, unit = 0; at < bytes; at += unit_bytes, ++unit) {
            memcpy(words, frame.base + offset + at, bytes - at < unit_bytes ? bytes - at : unit_bytes);
            unpack_unit(bits, words, codes_ + kUnit * unit);
        }
        return checksum(frame.base + offset, offset / 8, bytes / 8);
    }

    uint64_t unpack_ternary_block(const FrameView& frame, uint64_t block, uint64_t length) {
        const uint64_t offset = frame.at.payload + 16 * (kBlock / kTernaryUnit) * block;
        const uint64_t units = ceil_div(length, kTernaryUnit);
        for (uint64_t u = 0; u < units; ++u)
            unpack_ternary(frame.base + offset + 16 * u, codes_ + kTernaryUnit * u);
        return checksum(frame.base + offset, offset / 8, 2 * units);
    }

    void add_values(const FrameView& frame, uint64_t begin, uint64_t length) {
        const uint64_t size = frame.header.bucket_size;
        const float levels = static_cast<float>(frame.header.levels);
        uint64_t bucket = begin / size;
        for (uint64_t from = 0; from < length; ++bucket) {
            const uint64_t bucket_end = (bucket + 1) * size - begin;
            const uint64_t to = bucket_end < length ? bucket_end : length;
            const float scale = frame_scale(frame, bucket);
            add_bucket(from, to, grid_step(scale, levels), is_tiny(scale) ? kUnrescale : 1.0f);
            from = to;
        }
    }

    void add_bucket(uint64_t from, uint64_t to, float step, float unrescale) {
        uint64_t i = from;
        const Lanes::Float steps = Lanes::set(step), unrescales = Lanes::set(unrescale);
        for (; i + 16 <= to; i += 16) {
            const Lanes::Float value = Lanes::multiply(Lanes::convert(Lanes::load_bytes(codes_ + i)), steps);
            Lanes::store(sum_ + i, Lanes::add(Lanes::load(sum_ + i), Lanes::multiply(value, unrescales)));
        }
        for (; i < to; ++i) sum_[i] += (static_cast<float>(codes_[i]) * step) * unrescale;
    }

    void finish(uint64_t begin, uint64_t length) {
        using Element = typename T::Element;
        auto* out = const_cast<Element*>(element_at<Element>(job_.out, begin));
        const Lanes::Float factor = Lanes::set(job_.factor);
        uint64_t i = 0;
        for (; i + 16 <= length; i += 16) T::store(out + i, Lanes::multiply(Lanes::load(sum_ + i), factor));
        for (; i < length; ++i) {
            const Element e = T::narrow(sum_[i] * job_.factor);
            memcpy(reinterpret_cast<char*>(out) + i * sizeof e, &e, sizeof e);
        }
    }

    const DecodeJob& job_;
    alignas(64) float sum_[kBlock];
    alignas(64) int8_t codes_[kBlock + kUnit];
};

template <class T>
uint64_t decode_blocks_of(const DecodeJob& job, uint64_t first, uint64_t last, float* scratch) {
    BlockDecoder<T> decoder(job);
    uint64_t terms = 0;
    for (uint64_t block = first; block < last; ++block) {
        const uint64_t left = job.count - block * kBlock;
        const uint64_t length = left < kBlock ? left : kBlock;
        if (length == kBlock && job.alike && sum_alike<T>(job, block, scratch, terms)) continue;
        terms += decoder.decode(block, length);
    }
    return terms;
}

}  // namespace
}  // namespace qsgd
