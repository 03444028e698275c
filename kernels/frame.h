// The frame's header, its layout and its checks (docs/wire_format.md, sections 1, 6 and 9), for host and
// device.
#pragma once

#include "numeric.h"
#include "qsgd.h"

namespace qsgd {

struct Header {
    uint32_t magic;
    uint8_t version, codec, norm, dtype;
    uint32_t flags, levels;
    uint64_t count, bucket_size, seed;
    uint32_t rank, tensor, step, zero0;
    uint64_t coded_bytes, frame_bytes;
    uint64_t squared_norm;  // bits of a float64
    uint64_t zero1, checksum;
};
static_assert(sizeof(Header) == QSGD_HEADER_BYTES, "the header is 96 bytes");

constexpr uint32_t kMagic = 0x44475351u;  // "QSGD"
constexpr uint8_t kVersion = 1;
constexpr uint64_t kMaxCount = 1ull << 48;
constexpr uint64_t kMaxMessage = 1024;
constexpr uint64_t kChecksumWord = 11;       // index of the checksum among the frame's 64-bit words
constexpr uint64_t kUnit = 512;              // elements a packed unit: 32 rows of 16 lanes
constexpr uint32_t kMostNarrowLevels = 127;  // whose codes fit a byte
constexpr uint32_t kMostLevels = 32767;
constexpr uint64_t kStretch = 1 << 17;  // elements that a variable-length codec is decoded by
constexpr uint64_t kTernaryUnit = 80;   // elements a ternary unit: 5 rows of 16 lanes

QSGD_HD uint64_t ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }
QSGD_HD uint64_t roundup16(uint64_t a) { return (a + 15) / 16 * 16; }

QSGD_HD uint64_t stretches_of(uint64_t count) { return ceil_div(count, kStretch); }

QSGD_HD uint64_t units_of_stretch(uint64_t count, uint64_t stretch) {
    const uint64_t left = ceil_div(count - stretch * kStretch, kUnit);
    return left < kStretch / kUnit ? left : kStretch / kUnit;
}

// Bits of a packed code.
QSGD_HD uint32_t code_bits(uint32_t levels) {
    uint32_t bits = 2;
    while ((1u << (bits - 1)) - 1 < levels) ++bits;
    return bits;
}

QSGD_HD bool is_codec(uint8_t codec) { return codec >= QSGD_CODEC_PACKED && codec <= QSGD_CODEC_ONEBIT; }
QSGD_HD bool is_elias(uint8_t codec) {
    return codec == QSGD_CODEC_ELIAS_DENSE || codec == QSGD_CODEC_ELIAS_SPARSE;
}
QSGD_HD bool rounds_to_fixed_width(uint8_t codec) {
    return codec == QSGD_CODEC_PACKED || codec == QSGD_CODEC_TERNARY;
}
QSGD_HD bool has_fixed_width(uint8_t codec) {
    return rounds_to_fixed_width(codec) || codec == QSGD_CODEC_ONEBIT;
}
QSGD_HD bool has_variable_width(uint8_t codec) { return is_elias(codec) || codec == QSGD_CODEC_RANS; }

QSGD_HD bool is_norm(uint8_t norm, uint8_t codec) {
    if (codec == QSGD_CODEC_ERROR || codec == QSGD_CODEC_ONEBIT) return norm == QSGD_NORM_NONE;
    return norm == QSGD_NORM_MAX || norm == QSGD_NORM_L2;
}

QSGD_HD bool is_dtype(uint32_t dtype) { return dtype >= QSGD_FLOAT32 && dtype <= QSGD_BFLOAT16; }

// Whether a frame with this codec may have these flags.
QSGD_HD bool flags_possible(uint32_t flags, uint8_t codec) {
    const uint32_t known =
        QSGD_FLAG_SQUARED_NORM | (rounds_to_fixed_width(codec) ? QSGD_FLAG_SUBTRACTIVE : 0);
    return (flags & ~known) == 0;
}
QSGD_HD bool is_subtractive(const Header& h) { return (h.flags & QSGD_FLAG_SUBTRACTIVE) != 0; }

QSGD_HD uint32_t max_levels(uint8_t codec) {
    if (codec == QSGD_CODEC_TERNARY || codec == QSGD_CODEC_ONEBIT) return 1;
    return codec == QSGD_CODEC_PACKED ? kMostNarrowLevels : kMostLevels;
}

QSGD_HD uint64_t payload_bytes(uint8_t codec, uint32_t levels, uint64_t count) {
    if (codec == QSGD_CODEC_TERNARY) return 16 * ceil_div(count, kTernaryUnit);
    if (codec == QSGD_CODEC_ONEBIT) return 64 * ceil_div(count, kUnit);
    const uint64_t bits = code_bits(levels);
    const uint64_t last_rows = ceil_div(count % kUnit, 16);
    return 64 * (bits * (count / kUnit) + ceil_div(bits * last_rows, 32));
}

// Where the parts of a frame lie, in bytes from its start. With a variable-length codec only the coder knows
// the last two: they are 0 here.
struct Layout {
    uint64_t buckets, scales, payload, coded_bytes, frame_bytes;
};

QSGD_HD Layout layout(uint8_t codec, uint32_t levels, uint64_t count, uint64_t bucket_size) {
    Layout at;
    at.buckets = ceil_div(count, bucket_size);
    at.scales = codec == QSGD_CODEC_ONEBIT ? 2 * at.buckets : at.buckets;
    at.payload = QSGD_HEADER_BYTES + roundup16(4 * at.scales);
    const bool fixed = has_fixed_width(codec);
    at.coded_bytes = fixed ? at.payload + payload_bytes(codec, levels, count) : 0;
    at.frame_bytes = roundup16(at.coded_bytes);
    return at;
}

QSGD_HD Layout layout_of(const qsgd_spec& spec) {
    return layout(spec.codec, spec.levels, spec.count, spec.bucket_size);
}

// Whether a frame can be made as `spec` says.
QSGD_HD bool spec_possible(const qsgd_spec& s) {
    const bool codec = is_codec(s.codec) || s.codec == QSGD_CODEC_AUTO;
    const bool norm = is_norm(s.norm, s.codec);
    const bool dtype = is_dtype(s.dtype);
    const bool flags = flags_possible(s.flags, s.codec);
    const bool sizes = s.count <= kMaxCount && s.bucket_size >= 1 && s.bucket_size <= kMaxCount;
    return codec && norm && dtype && flags && sizes && s.levels >= 1 && s.levels <= max_levels(s.codec);
}

// The header of a frame, but for its checksum.
QSGD_HD Header header_of(const qsgd_spec& s, const Layout& at, uint64_t squared_norm) {
    Header h = {};
    h.magic = kMagic;
    h.version = kVersion;
    h.codec = s.codec, h.norm = s.norm, h.dtype = s.dtype;
    h.flags = s.flags, h.levels = s.levels;
    h.count = s.count, h.bucket_size = s.bucket_size, h.seed = s.seed;
    h.rank = s.rank, h.tensor = s.tensor, h.step = s.step;
    h.coded_bytes = at.coded_bytes, h.frame_bytes = at.frame_bytes;
    h.squared_norm = squared_norm;
    return h;
}

// Whether coded_bytes and frame_bytes can be right: with a variable-length codec the payload must tell.
QSGD_HD bool lengths_possible(const Header& h) {
    if (h.codec == QSGD_CODEC_ERROR)
        return h.coded_bytes >= QSGD_HEADER_BYTES && h.coded_bytes <= QSGD_HEADER_BYTES + kMaxMessage &&
               h.frame_bytes == roundup16(h.coded_bytes);
    const Layout at = layout(h.codec, h.levels, h.count, h.bucket_size);
    if (has_fixed_width(h.codec)) return h.coded_bytes == at.coded_bytes && h.frame_bytes == at.frame_bytes;
    return h.coded_bytes >= at.payload && h.coded_bytes <= h.frame_bytes && h.frame_bytes % 16 == 0;
}

// Check 1 to 3 of section 9: QSGD_OK or QSGD_ERROR_FRAME for a frame that is valid by itself.
QSGD_HD int check_header(const Header& h, uint64_t bytes_there) {
    if (h.magic != kMagic) return QSGD_BAD_MAGIC;
    if (h.version != kVersion) return QSGD_BAD_VERSION;
    const bool error = h.codec == QSGD_CODEC_ERROR;
    if (!error && !is_codec(h.codec)) return QSGD_BAD_CODEC;
    if (!is_norm(h.norm, h.codec)) return QSGD_BAD_NORM;
    if (!is_dtype(h.dtype)) return QSGD_BAD_DTYPE;
    if (h.zero0 || h.zero1 || !flags_possible(h.flags, h.codec)) return QSGD_BAD_RESERVED;
    if (!(h.flags & QSGD_FLAG_SQUARED_NORM) && h.squared_norm) return QSGD_BAD_RESERVED;
    if (error && (h.flags || h.seed)) return QSGD_BAD_RESERVED;
    if (h.count > kMaxCount) return QSGD_BAD_COUNT;
    if (error ? h.bucket_size != 0 : h.bucket_size < 1 || h.bucket_size > kMaxCount)
        return QSGD_BAD_BUCKET_SIZE;
    if (error ? h.levels != 0 : h.levels < 1 || h.levels > max_levels(h.codec)) return QSGD_BAD_LEVELS;
    if (!lengths_possible(h)) return QSGD_BAD_LENGTH;
    if (h.frame_bytes > bytes_there) return QSGD_TRUNCATED;
    return error ? QSGD_ERROR_FRAME : QSGD_OK;
}

// Check 5: does frame number `index` belong in this sum?
QSGD_HD int check_agreement(const Header& h, const qsgd_expectation& expected, uint32_t index) {
    if (h.count != expected.count) return QSGD_OTHER_COUNT;
    if (h.dtype != expected.dtype) return QSGD_OTHER_DTYPE;
    if (h.tensor != expected.tensor) return QSGD_OTHER_TENSOR;
    if (h.step != expected.step) return QSGD_OTHER_STEP;
    if (h.rank != expected.first_rank + index) return QSGD_OTHER_RANK;
    return QSGD_OK;
}

}  // namespace qsgd
