// From payloads to a lane's codes of a unit (docs/wire_format.md, section 6).
#pragma once

#include "cuda/frames.cuh"
#include "cuda/pack.cuh"

namespace qsgd {

// 2^exponent.
__device__ __forceinline__ float power_of_two(int exponent) {
    return float_from_bits(static_cast<uint32_t>(127 + exponent) << 23);
}

// Rows of a unit that are there.
__device__ __forceinline__ uint32_t unit_rows(uint64_t unit, uint64_t count) {
    const uint64_t first = kUnit * unit, left = first < count ? count - first : 0;
    return static_cast<uint32_t>(left < kUnit ? (left + kLanes - 1) / kLanes : kRows);
}

// Bytes of it in packed payloads of so many bits.
__device__ __forceinline__ uint32_t packed_bytes(uint32_t bits, uint32_t rows) {
    return 64 * ((bits * rows + 31) / 32);
}

// A lane's part of a unit in packed payloads of so many bits.
template <int kBits>
struct PackedUnit {
    static constexpr uint32_t kBytes = 64 * kBits;
    uint64_t first,
        key;         // its first word in the payload, in bytes, and the checksum's number from the payload's
    uint32_t bytes;  // of the unit that are there

    __device__ __forceinline__ PackedUnit(uint64_t unit, uint32_t rows)
        : first(kBytes * unit + 4 * lane_of_half_warp()),
          key((kBytes / 8 * unit + lane_of_half_warp()) * kGolden),
          bytes(packed_bytes(kBits, rows)) {}

    // The words of its string, zeros where the payload has ended. Returns its part of the unit's terms.
    __device__ __forceinline__ uint64_t load(const FrameView& view, uint32_t (&words)[kBits]) const {
        const uint32_t lane = lane_of_half_warp();
        const auto* const narrow = reinterpret_cast<const uint32_t*>(view.payload + first);
        const auto* const wide = reinterpret_cast<const uint64_t*>(narrow + lane);
        const uint64_t begin = view.key + key;
        uint64_t terms = 0;
        const auto add = [&](uint32_t w) {
            terms += keyed_term(__ldg(wide + 8 * w), begin + 8 * w * kGolden);
        };
        if (bytes == kBytes) {
#pragma unroll
            for (int w = 0; w < kBits; ++w) words[w] = __ldg(narrow + kLanes * w);
#pragma unroll
            for (int w = 0; w < kBits; w += 2)
                if (w + 1 < kBits || lane < kLanes / 2) add(w);
        } else {
#pragma unroll
            for (uint32_t w = 0; w < kBits; ++w) words[w] = 64 * w < bytes ? __ldg(narrow + kLanes * w) : 0;
#pragma unroll 1
            for (uint32_t w = 0; 64 * w + 8 * lane < bytes; w += 2) add(w);
        }
        return terms;
    }
};

// (a & b) ^ c in one instruction, of which the compiler makes two where b and c are constants.
__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
#else
    return (a & b) ^ c;
#endif
}

// Calls body(row, number, exponent) for the codes of a lane's string, each being number / 2^exponent: a code
// is turned into a number where it stands, in the mantissa of 2^23, which takes no conversion, and few
// shifts.
template <int kBits, class Body>
__device__ __forceinline__ void each_packed(const uint32_t (&words)[kBits], Body body) {
    constexpr uint32_t kMask = (1u << kBits) - 1, kSign = 1u << (kBits - 1), kOne = 0x4B000000u;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int bit = r * kBits % 32, word = r * kBits / 32;
        const int at = 32 % kBits == 0 ? bit % 16 : 0;
        const uint32_t field = bit + kBits > 32 ? __funnelshift_r(words[word], words[(word + 1) % kBits], bit)
                                                : words[word] >> (bit - at);
        const float lifted = float_from_bits(and_xor(field, kMask << at, kOne | kSign << at));
        body(r, lifted - float_from_bits(kOne | kSign << at), at);
    }
}

// Calls body(row, number, 0) for the ternary codes of a lane's rows.
template <class Body>
__device__ __forceinline__ void each_ternary(const FrameView& view, uint64_t unit, Body body) {
    const uint64_t first_row = kRows * unit, units = (view.at.coded_bytes - view.at.payload) / 16;
    const uint8_t* const bytes = view.base + view.at.payload + lane_of_half_warp();
    uint64_t at = first_row / 5;
    uint32_t digit = static_cast<uint32_t>(first_row % 5), rest = at < units ? __ldg(bytes + 16 * at) : 0;
    for (uint32_t k = 0; k < digit; ++k) rest /= 3;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        body(r, static_cast<float>(static_cast<int>(rest % 3) - 1), 0);
        rest /= 3;
        if (++digit == 5) digit = 0, rest = ++at < units ? __ldg(bytes + 16 * at) : 0;
    }
}

// The same for codes that were decoded before.
template <class Body>
__device__ __forceinline__ void each_coded(const int16_t* codes, Body body) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) body(r, static_cast<float>(codes[kLanes * r]), 0);
}

// A half-warp's words of the payload of a unit: those of ternary units that begin in it.
__device__ __forceinline__ uint64_t first_payload_word(const FrameView& view, uint64_t unit) {
    const bool ternary = view.header.codec == QSGD_CODEC_TERNARY;
    const uint64_t word = ternary ? 2 * ceil_div(kRows * unit, 5) : 8 * view.bits * unit;
    const uint64_t first = view.at.payload / 8 + word, end = view.at.coded_bytes / 8;
    return first < end ? first : end;
}

}  // namespace qsgd
