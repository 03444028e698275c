// Blocks of codes to Elias' strings (docs/wire_format.md, section 6).
//
// Where consecutive codes are small, the strings of four are made and joined in vector lanes; others are
// taken one by one.
#pragma once

#include "cpu/bits.h"
#include "cpu/elias_lanes.h"
#include "elias.h"

namespace qsgd {
namespace {

inline BitString elias(uint32_t k) {
    const uint32_t m = 31 - static_cast<uint32_t>(__builtin_clz(k));
    return {(k + kEliasWords.prefix[m]) << 1, kEliasWords.length[m]};
}
inline uint32_t magnitude(int16_t code) { return static_cast<uint32_t>(code < 0 ? -code : code); }
inline BitString sign(int16_t code) { return {code < 0, 1}; }

// Calls other(k) for each quad k of which a code is not small.
template <class Other>
QSGD_INLINE void put_quads(BitWriter& writer, const QuadStrings& quads, Other other) {
    for (int k = 0; k < kQuads; k += 2) {
        const uint64_t length = quads.lengths[k] + quads.lengths[k + 1];
        if (__builtin_expect(length <= BitWriter::kMost, 1)) {
            writer.put(
                {quads.bits[k] << quads.lengths[k + 1] | quads.bits[k + 1], static_cast<uint32_t>(length)});
            continue;
        }
        for (int q = k; q < k + 2; ++q)
            if (quads.lengths[q] <= BitWriter::kMost)
                writer.put({quads.bits[q], static_cast<uint32_t>(quads.lengths[q])});
            else
                other(q);
    }
}

inline BitString dense_string(int16_t code) {
    const BitString number = elias(magnitude(code) + 1);
    return code ? number.then(sign(code)) : number;
}

// Writes the block of `elements` codes and returns its bytes. Seven bytes behind it may be written too.
inline uint64_t encode_dense(const int16_t* codes, uint64_t elements, uint8_t* out) {
    BitWriter writer(out);
    QuadStrings quads;
    uint64_t i = 0;
    for (; i + kShorts <= elements; i += kShorts) {
        join(dense_strings(load_shorts(codes + i)), quads);
        put_quads(writer, quads, [&](int k) {
            const int16_t* four = codes + i + 4 * k;
            writer.put(dense_string(four[0]).then(dense_string(four[1])));
            writer.put(dense_string(four[2]).then(dense_string(four[3])));
        });
    }
    for (; i < elements; ++i) writer.put(dense_string(codes[i]));
    return static_cast<uint64_t>(writer.end() - out);
}

class SparseEncoder {
  public:
    SparseEncoder(const int16_t* codes, uint64_t elements, uint8_t* out)
        : codes_(codes), elements_(elements), writer_(out) {}

    void encode() {
        const uint32_t nonzeros = count();
        writer_.put(elias(nonzeros + 1));
        uint64_t i = 0;
        if (nonzeros > elements_ / 2)
            for (; i + kChunk <= elements_; i += kChunk) put_chunk(i);
        int64_t last = last_before(i);
        const uint64_t step = nonzeros > elements_ / 16 ? kChunk : kSkipped;
        for (; i < elements_; i += step) {
            const uint64_t end = i + step < elements_ ? i + step : elements_;
            if (step > kSkipped || !all_zero(i, end)) last = put_some(i, end, last);
        }
    }
    uint8_t* end() const { return writer_.end(); }

  private:
    static constexpr uint64_t kChunk = 512;
    static constexpr uint64_t kSkipped = 16;  // at a time, where almost all are zero

    uint32_t count() const {
        uint32_t all = 0;
        for (uint64_t begin = 0; begin < elements_; begin += kChunk) {
            const uint64_t end = begin + kChunk < elements_ ? begin + kChunk : elements_;
            int16_t zeros = 0;  // as narrow as the codes: so many in a vector
            for (uint64_t i = begin; i < end; ++i) zeros = static_cast<int16_t>(zeros + (codes_[i] == 0));
            all += static_cast<uint32_t>(end - begin) - static_cast<uint32_t>(zeros);
        }
        return all;
    }

    bool all_zero(uint64_t begin, uint64_t end) const {
        int32_t any = 0;
        for (uint64_t i = begin; i < end; ++i) any |= codes_[i];
        return any == 0;
    }

    // Of a block of which most codes are not zero.
    void put_chunk(uint64_t begin) {
        // The element before a block counts as one that is not zero.
        int16_t zeros[kNearZeros + kChunk];
        for (int k = 0; k < kNearZeros; ++k)
            zeros[k] = begin > 0 && codes_[begin + k - kNearZeros] == 0 ? -1 : 0;
        for (uint64_t k = 0; k < kChunk; ++k) zeros[kNearZeros + k] = codes_[begin + k] == 0 ? -1 : 0;
        BitWriter writer = writer_;  // in registers
        QuadStrings quads;
        for (uint64_t i = 0; i < kChunk; i += kShorts) {
            join(sparse_strings(load_shorts(codes_ + begin + i), zeros + kNearZeros + i), quads);
            put_quads(writer, quads, [&](int k) {
                const uint64_t at = begin + i + 4 * static_cast<uint64_t>(k);
                writer_ = writer;
                put_some(at, at + 4, last_before(at));
                writer = writer_;
            });
        }
        writer_ = writer;
    }

    // Position of the last nonzero before `i`, or -1.
    int64_t last_before(uint64_t i) const {
        int64_t last = static_cast<int64_t>(i) - 1;
        while (last >= 0 && codes_[last] == 0) --last;
        return last;
    }

    // The strings of the nonzeros among at most kChunk elements, `last` being the one before them; the new
    // last one.
    int64_t put_some(uint64_t first, uint64_t end, int64_t last) {
        uint64_t where[kChunk + 1], found = 0;
        for (uint64_t i = first; i < end; ++i) where[found] = i, found += codes_[i] != 0;  // without a branch
        BitWriter writer = writer_;                                                        // in registers
        for (uint64_t k = 0; k < found; ++k) {
            const int16_t code = codes_[where[k]];
            const BitString gap = elias(static_cast<uint32_t>(static_cast<int64_t>(where[k]) - last));
            writer.put(gap.then(sign(code)).then(elias(magnitude(code))));
            last = static_cast<int64_t>(where[k]);
        }
        writer_ = writer;
        return last;
    }

    const int16_t* const codes_;
    const uint64_t elements_;
    BitWriter writer_;
};

// As encode_dense.
inline uint64_t encode_sparse(const int16_t* codes, uint64_t elements, uint8_t* out) {
    SparseEncoder encoder(codes, elements, out);
    encoder.encode();
    return static_cast<uint64_t>(encoder.end() - out);
}

}  // namespace
}  // namespace qsgd
