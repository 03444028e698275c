// The C ABI over the kernels of the instruction set in use: argument checks, threads and scratch memory.
#include <algorithm>
#include <cmath>
#include <new>
#include <system_error>

#include "cpu/decode_frames.h"
#include "cpu/encode_frame.h"
#include "cpu/solve_levels.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

namespace qsgd {
namespace {

// The most bytes of a frame.
uint64_t most_bytes(qsgd_spec spec) {
    if (spec.codec == QSGD_CODEC_AUTO) {
        uint64_t most = 0;
        const uint32_t levels = spec.levels;
        for (spec.codec = QSGD_CODEC_PACKED; spec.codec <= QSGD_CODEC_RANS; ++spec.codec) {
            spec.levels = std::min(levels, max_levels(spec.codec));
            if (is_codec(spec.codec)) most = std::max(most, most_bytes(spec));
        }
        return most;
    }
    const Layout at = layout_of(spec);
    return has_fixed_width(spec.codec) ? at.frame_bytes : roundup16(at.payload + most_variable_bytes(spec));
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

uint32_t qsgd_columns(const uint64_t* shape, uint32_t dimensions) {
    uint64_t count = 1, best = 0, columns = 0;
    for (uint32_t k = 0; k < dimensions; ++k) count *= shape[k];
    for (uint64_t split = count, k = 0; count && k + 1 < dimensions; ++k) {
        split /= shape[k];
        const uint64_t smaller = std::min(split, count / split);
        if (smaller > best) best = smaller, columns = split;
    }
    return best > 1 && columns <= UINT32_MAX ? static_cast<uint32_t>(columns) : 0;
}

int qsgd_frame_bytes(const qsgd_spec* spec, uint64_t* bytes) {
    if (!spec || !bytes || !spec_possible(*spec)) return QSGD_BAD_ARGUMENT;
    *bytes = most_bytes(*spec);
    return QSGD_OK;
}

int qsgd_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity, uint32_t threads,
                uint64_t* bytes) {
    if (!spec || !frame || !bytes || !spec_possible(*spec)) return QSGD_BAD_ARGUMENT;
    if ((!gradient && spec->count) || spec->codec == QSGD_CODEC_AUTO) return QSGD_BAD_ARGUMENT;
    if (capacity < most_bytes(*spec)) return QSGD_FRAME_TOO_SMALL;
    return guarded([&] {
        const EncodeJob job = {*spec, layout_of(*spec), gradient, static_cast<uint8_t*>(frame), false};
        *bytes = encode_frame(job, threads);
        return QSGD_OK;
    });
}

int qsgd_solve_levels(const qsgd_spec* spec, const void* gradient, double variance, uint32_t threads,
                      uint32_t* levels) {
    if (!spec || !levels || !spec_possible(*spec)) return QSGD_BAD_ARGUMENT;
    if (!gradient && spec->count) return QSGD_BAD_ARGUMENT;
    if (!(variance > 0) || !std::isfinite(variance) || spec->codec == QSGD_CODEC_ONEBIT)
        return QSGD_BAD_ARGUMENT;
    return guarded([&] {
        const EncodeJob job = {*spec, layout_of(*spec), gradient, nullptr, false};
        *levels = LevelSolver(job, variance, useful_threads(threads, spec->count)).solve(spec->levels);
        return QSGD_OK;
    });
}

int qsgd_pad(void* frame, uint64_t capacity, uint64_t bytes) {
    auto* const base = static_cast<uint8_t*>(frame);
    Header h;
    if (!frame || bytes % 16 != 0) return QSGD_BAD_ARGUMENT;
    if (bytes > capacity) return QSGD_FRAME_TOO_SMALL;
    const int status = read_header(base, capacity, h);
    if (status != QSGD_OK) return status;
    if (bytes < h.coded_bytes || has_fixed_width(h.codec)) return QSGD_BAD_ARGUMENT;
    const auto terms = [&] {  // of the words that change
        return checksum_terms(base, 64, 72) + checksum_terms(base, roundup16(h.coded_bytes), h.frame_bytes);
    };
    h.checksum -= terms();
    memset(base + h.coded_bytes, 0, bytes - h.coded_bytes);
    h.frame_bytes = bytes;
    memcpy(base, &h, sizeof h);
    write_checksum(base, h.checksum + terms());
    return QSGD_OK;
}

uint64_t qsgd_padded_bytes(uint64_t bytes, uint64_t last) {
    // An eighth of an octave: what is padded is a sixteenth of the frame on average.
    if (bytes <= last && bytes >= last - last / 4) return last;
    uint64_t step = 16;
    while (step * 16 < bytes) step *= 2;
    return ceil_div(bytes + bytes / 32, step) * step;
}

int qsgd_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                    const qsgd_expectation* expected, float factor, void* out, uint32_t threads,
                    uint32_t* bad_frame) {
    if (!frames || !frame_count || !expected || !bad_frame) return QSGD_BAD_ARGUMENT;
    if (!out && expected->count) return QSGD_BAD_ARGUMENT;
    return guarded([&] {
        const Output output = {out, static_cast<uint8_t>(expected->dtype), factor, false};
        return decode_frames(static_cast<const uint8_t*>(frames), bytes, frame_count, *expected, output,
                             threads, *bad_frame);
    });
}

int qsgd_add_gradient(const void* gradient, uint32_t dtype, uint64_t count, float* residual,
                      uint32_t threads) {
    if ((!gradient || !residual) && count) return QSGD_BAD_ARGUMENT;
    if (!is_dtype(dtype) || count > kMaxCount) return QSGD_BAD_ARGUMENT;
    return guarded([&] {
        parallel(useful_threads(threads, count), count, [&](uint32_t, uint64_t first, uint64_t last) {
            kernels().add_gradient(gradient, static_cast<uint8_t>(dtype), first, last, residual);
        });
        return QSGD_OK;
    });
}

int qsgd_subtract_frame(const void* frame, uint64_t bytes, const qsgd_expectation* expected, float* residual,
                        uint32_t threads) {
    if (!frame || !expected || (!residual && expected->count)) return QSGD_BAD_ARGUMENT;
    return guarded([&] {
        uint32_t bad_frame = 0;
        return decode_frames(static_cast<const uint8_t*>(frame), bytes, 1, *expected,
                             {residual, QSGD_FLOAT32, 1, true}, threads, bad_frame);
    });
}

int qsgd_check(const void* frame, uint64_t bytes, uint64_t* frame_bytes) {
    if (!frame || !frame_bytes) return QSGD_BAD_ARGUMENT;
    const auto* const base = static_cast<const uint8_t*>(frame);
    Header h;
    const int status = read_header(base, bytes, h);
    if (status != QSGD_OK && status != QSGD_ERROR_FRAME) return status;
    *frame_bytes = h.frame_bytes;
    const Layout at = status == QSGD_OK ? layout(h.codec, h.levels, h.count, h.bucket_size) : Layout{};
    if (!scales_possible(base, at.scales)) return QSGD_BAD_SCALE;
    if (checksum_terms(base, 0, h.frame_bytes) != h.checksum) return QSGD_BAD_CHECKSUM;
    if (status != QSGD_OK || has_fixed_width(h.codec)) return status;
    return guarded([&] {
        const FrameView view = {base, h, at, nullptr};
        return VariablePayload().open(view) ? QSGD_OK : QSGD_BAD_PAYLOAD;
    });
}

int qsgd_seal(void* frame, uint64_t bytes) {
    if (!frame || bytes < QSGD_HEADER_BYTES || bytes % 8) return QSGD_BAD_ARGUMENT;
    auto* const base = static_cast<uint8_t*>(frame);
    write_checksum(base, checksum_terms(base, 0, bytes));
    return QSGD_OK;
}

float qsgd_read_sum(const float* values, uint64_t n) { return kernels().read_sum(values, n); }
