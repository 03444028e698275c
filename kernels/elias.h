// Elias' recursive code, and the layout of payloads made of it (docs/wire_format.md, section 6), for host and
// device.
#pragma once

#include "numeric.h"
#include "qsgd.h"

namespace qsgd {

constexpr uint32_t kEliasHead = 8;     // bytes before the blocks' lengths
constexpr uint32_t kEliasBlock = 512;  // elements of the smallest block
constexpr uint32_t kLargestEliasBlock = 1 << 17;
constexpr uint32_t kExpectedNonzeros = 32;          // of a sparse block; with fewer it is made larger
constexpr uint32_t kEliasScratchBytes = 65535 + 7;  // of a block's string while it is written
constexpr int kEliasDigits = 18;  // binary digits of the largest number, kLargestEliasBlock + 1

QSGD_HD constexpr uint32_t floor_log2(uint32_t k) {
    uint32_t m = 0;
    while (k >> m > 1) ++m;
    return m;
}

// Of numbers k with m + 1 binary digits: Elias(k) is 2 * (k + prefix[m]) in length[m] bits.
struct EliasWords {
    uint32_t prefix[kEliasDigits] = {~0u};  // before 1 nothing stands, not even its digit
    uint32_t length[kEliasDigits] = {1};
    constexpr EliasWords() {
        for (uint32_t m = 1; m < kEliasDigits; ++m) {
            prefix[m] = (m + prefix[floor_log2(m)]) << (m + 1);
            length[m] = length[floor_log2(m)] + m + 1;
        }
    }
};

constexpr EliasWords kEliasWords;

// The first number of a string: after `skip` bits, the last of them its leading digit, come `digits` more
// ones and then a bit 0, or 1 if that was not the number but one less than the digits of another.
struct NumberShape {
    uint8_t skip, digits;
};

struct NumberTable {
    static constexpr int kBits = 7;
    NumberShape shapes[1 << kBits] = {};
    constexpr NumberTable() {
        for (uint32_t w = 0; w < 1 << kBits; ++w) shapes[w] = shape(w);
    }

  private:
    static constexpr uint32_t bits(uint32_t w, uint32_t at, uint32_t count) {
        return w >> (kBits - at - count) & ((1u << count) - 1);
    }
    static constexpr NumberShape shape(uint32_t w) {
        if (bits(w, 0, 1) == 0) return {0, 0};
        if (bits(w, 2, 1) == 0) return {1, 1};
        const uint32_t second = bits(w, 0, 2), third = bits(w, 2, second + 1);
        if (bits(w, 3 + second, 1) == 0) return {3, static_cast<uint8_t>(second)};
        return {static_cast<uint8_t>(4 + second), static_cast<uint8_t>(third)};
    }
};

struct Number {
    uint32_t value, length;
    bool complete;  // else `value` is one less than the digits of a number of more than 16
};

// Of a string's next bits, the first as the most significant.
template <class Bits>
QSGD_HD constexpr Number first_number(const NumberShape& shape, Bits next) {
    constexpr uint32_t kLast = 8 * sizeof(Bits) - 1;
    const uint32_t digits = shape.digits, end = shape.skip + digits;
    const Bits value = Bits{1} << digits | next << shape.skip >> 1 >> (kLast - digits);
    return {static_cast<uint32_t>(value), end + 1u, (next << end >> kLast) == 0};
}

// Bits of Elias(k).
QSGD_HD constexpr uint32_t elias_length(uint32_t k) {
    uint32_t length = 1;
    for (; k > 1; k = floor_log2(k)) length += floor_log2(k) + 1;
    return length;
}

QSGD_HD bool is_elias_block(uint32_t size, bool sparse) {
    return size >= kEliasBlock && size <= (sparse ? kLargestEliasBlock : kEliasBlock) &&
           (size & (size - 1)) == 0;
}

// K, the elements a block.
QSGD_HD uint32_t elias_block(const qsgd_spec& spec) {
    const uint64_t d = spec.bucket_size < spec.count ? spec.bucket_size : spec.count, s = spec.levels;
    if (spec.codec != QSGD_CODEC_ELIAS_SPARSE || spec.norm != QSGD_NORM_L2) return kEliasBlock;
    uint64_t root = static_cast<uint64_t>(sqrt(static_cast<double>(d)));  // exact: d <= 2^48
    const uint64_t longest = 2 + elias_length(spec.levels), block_bits = 8 * 65535 - 64;
    uint32_t size = kEliasBlock;
    while (size * s * (s + root) < kExpectedNonzeros * d && 2 * size * longest < block_bits) size *= 2;
    return size;
}

// Elements that are quantized at a time: whole blocks.
QSGD_HD uint64_t elias_piece(uint32_t block) { return block < 4096 ? 4096 : block; }

// Bytes that no block of this many elements exceeds.
QSGD_HD uint64_t elias_block_bound(bool sparse, uint32_t levels, uint64_t elements) {
    const uint64_t bits =
        sparse ? elias_length(static_cast<uint32_t>(elements) + 1) + elements * (2 + elias_length(levels))
               : elements * (1 + elias_length(levels + 1));
    return (bits + 7) / 8;
}

// Bytes that no payload exceeds.
QSGD_HD uint64_t elias_bound(bool sparse, uint32_t levels, uint64_t count, uint32_t block) {
    if (count == 0) return 0;
    const uint64_t whole = count / block, rest = count % block;
    const uint64_t last = rest ? 2 + elias_block_bound(sparse, levels, rest) : 0;
    return kEliasHead + whole * (2 + elias_block_bound(sparse, levels, block)) + last;
}

}  // namespace qsgd
