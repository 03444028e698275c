// The C ABI over the kernels of the instruction set in use: argument checks, threads and scratch memory.
#include <new>
#include <system_error>

#include "cpu/decode_frames.h"
#include "cpu/encode_frame.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

namespace qsgd {
namespace {

int check_spec(const qsgd_spec& s) {
    const bool codec = s.codec == QSGD_CODEC_PACKED || s.codec == QSGD_CODEC_TERNARY;
    const bool norm = s.norm == QSGD_NORM_MAX || s.norm == QSGD_NORM_L2;
    const bool dtype = s.dtype >= QSGD_FLOAT32 && s.dtype <= QSGD_BFLOAT16;
    const bool flags = (s.flags & ~QSGD_FLAG_SQUARED_NORM) == 0;
    const bool sizes = s.count <= kMaxCount && s.bucket_size >= 1 && s.bucket_size <= kMaxCount;
    if (!codec || !norm || !dtype || !flags || !sizes) return QSGD_BAD_ARGUMENT;
    return s.levels >= 1 && s.levels <= max_levels(s.codec) ? QSGD_OK : QSGD_BAD_ARGUMENT;
}

Layout layout_of(const qsgd_spec& spec) {
    return layout(spec.codec, spec.levels, spec.count, spec.bucket_size);
}

// Runs body() and turns what it throws into a status: nothing passes the C ABI.
template <class Body>
int guarded(Body body) {
    try {
        const DefaultFloatEnvironment environment;
        return body();
    } catch (const std::bad_alloc&) {
        return QSGD_OUT_OF_MEMORY;
    } catch (const std::system_error&) {
        return QSGD_OUT_OF_MEMORY;
    }
}

}  // namespace
}  // namespace qsgd

using namespace qsgd;

uint32_t qsgd_abi_version(void) { return QSGD_ABI_VERSION; }

const char* qsgd_isa(void) { return kernels().name; }

int qsgd_frame_bytes(const qsgd_spec* spec, uint64_t* bytes) {
    if (!spec || !bytes || check_spec(*spec) != QSGD_OK) return QSGD_BAD_ARGUMENT;
    *bytes = layout_of(*spec).frame_bytes;
    return QSGD_OK;
}

int qsgd_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity,
                uint32_t threads) {
    if (!spec || !frame || check_spec(*spec) != QSGD_OK) return QSGD_BAD_ARGUMENT;
    if (!gradient && spec->count) return QSGD_BAD_ARGUMENT;
    const Layout at = layout_of(*spec);
    if (capacity < at.frame_bytes) return QSGD_FRAME_TOO_SMALL;
    return guarded([&] {
        encode_frame({*spec, at, gradient, static_cast<uint8_t*>(frame), false}, threads);
        return QSGD_OK;
    });
}

int qsgd_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                    const qsgd_expectation* expected, float factor, void* out, uint32_t threads,
                    uint32_t* bad_frame) {
    if (!frames || !frame_count || !expected || !bad_frame) return QSGD_BAD_ARGUMENT;
    if (!out && expected->count) return QSGD_BAD_ARGUMENT;
    return guarded([&] {
        return decode_frames(static_cast<const uint8_t*>(frames), bytes, frame_count, *expected, factor, out,
                             threads, *bad_frame);
    });
}

int qsgd_check(const void* frame, uint64_t bytes, uint64_t* frame_bytes) {
    if (!frame || !frame_bytes) return QSGD_BAD_ARGUMENT;
    const auto* const base = static_cast<const uint8_t*>(frame);
    Header h;
    const int status = read_header(base, bytes, h);
    if (status != QSGD_OK && status != QSGD_ERROR_FRAME) return status;
    *frame_bytes = h.frame_bytes;
    if (status == QSGD_OK && !scales_possible(base, ceil_div(h.count, h.bucket_size))) return QSGD_BAD_SCALE;
    return checksum_terms(base, 0, h.frame_bytes) == h.checksum ? status : QSGD_BAD_CHECKSUM;
}

int qsgd_seal(void* frame, uint64_t bytes) {
    if (!frame || bytes < QSGD_HEADER_BYTES || bytes % 8) return QSGD_BAD_ARGUMENT;
    auto* const base = static_cast<uint8_t*>(frame);
    write_checksum(base, checksum_terms(base, 0, bytes));
    return QSGD_OK;
}

float qsgd_read_sum(const float* values, uint64_t n) { return kernels().read_sum(values, n); }
