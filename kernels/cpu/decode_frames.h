// The sum of many frames: all headers are checked before any payload is read; checksums are verified with the
// decoding.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/coded_payload.h"
#include "cpu/threads.h"

namespace qsgd {
namespace {

constexpr uint64_t kStreamElements = 1 << 21;  // outputs larger than the caches are written around them

// Checks 1 to 4, frame after frame; each tells where the next begins.
inline int view_frames(const uint8_t* frames, uint64_t bytes, std::vector<FrameView>& views,
                       uint32_t& bad_frame) {
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame) {
        FrameView& view = views[bad_frame];
        Header& h = view.header;
        view.base = frames;
        const int status = read_header(frames, bytes, h);
        if (status == QSGD_ERROR_FRAME && checksum_terms(frames, 0, h.frame_bytes) != h.checksum)
            return QSGD_BAD_CHECKSUM;
        if (status != QSGD_OK) return status;
        view.at = layout(h.codec, h.levels, h.count, h.bucket_size);
        frames += h.frame_bytes, bytes -= h.frame_bytes;
    }
    bad_frame = static_cast<uint32_t>(views.size() - 1);
    return bytes ? QSGD_TRAILING_BYTES : QSGD_OK;
}

// Checks 5 and 6.
inline int check_sum(const std::vector<FrameView>& views, const qsgd_expectation& expected,
                     uint32_t& bad_frame) {
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame) {
        const int agreement = check_agreement(views[bad_frame].header, expected, bad_frame);
        if (agreement != QSGD_OK) return agreement;
    }
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame)
        if (!scales_possible(views[bad_frame].base, views[bad_frame].at.scales)) return QSGD_BAD_SCALE;
    return QSGD_OK;
}

// Whether no bucket ends within the elements that are summed at a time.
inline bool has_whole_buckets(const Header& h) {
    if (h.codec == QSGD_CODEC_ONEBIT) return h.bucket_size % kUnit == 0 || h.bucket_size >= h.count;
    return h.bucket_size % kFewestElements == 0;
}

inline bool all_alike(const std::vector<FrameView>& views) {
    const Header& first = views[0].header;
    for (const FrameView& view : views) {
        const Header& h = view.header;
        if (is_subtractive(h)) return false;
        if (h.codec != first.codec || code_bits(h.levels) != code_bits(first.levels)) return false;
        if (h.bucket_size != first.bucket_size || !has_whole_buckets(h)) return false;
    }
    return true;
}

// Check 7: the terms of head and padding, and those that the threads' decoding left in `work`.
inline int verify(const std::vector<FrameView>& views, const std::vector<FrameWork>& work,
                  uint32_t& bad_frame) {
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame) {
        const FrameView& view = views[bad_frame];
        uint64_t found = checksum_terms(view.base, 0, view.at.payload) +
                         checksum_terms(view.base, view.at.coded_bytes, view.at.frame_bytes);
        for (uint64_t k = bad_frame; k < work.size(); k += views.size())
            for (uint64_t sum : work[k].sums) found += sum;
        if (found != view.header.checksum) return QSGD_BAD_CHECKSUM;
    }
    return QSGD_OK;
}

inline bool any_variable(const std::vector<FrameView>& views) {
    for (const FrameView& view : views)
        if (!has_fixed_width(view.header.codec)) return true;
    return false;
}

// Decode-and-sum where some frames have a variable-length codec: their checksums come first.
inline int decode_variable(std::vector<FrameView>& views, DecodeJob& job, uint32_t threads,
                           uint32_t& bad_frame) {
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame) {
        const Header& h = views[bad_frame].header;
        if (checksum_terms(views[bad_frame].base, 0, h.frame_bytes) != h.checksum) return QSGD_BAD_CHECKSUM;
    }
    std::vector<VariablePayload> payloads(views.size());
    for (bad_frame = 0; bad_frame < views.size(); ++bad_frame) {
        FrameView& view = views[bad_frame];
        if (has_fixed_width(view.header.codec)) continue;
        if (!payloads[bad_frame].open(view)) return QSGD_BAD_PAYLOAD;
        view.coded = &payloads[bad_frame].coded();
    }
    std::vector<ReadPosition> positions(views.size() * threads);
    std::vector<uint32_t> bad(threads, job.frame_count);
    parallel(threads, stretches_of(job.count), [&](uint32_t worker, uint64_t first, uint64_t last) {
        ReadPosition* const mine = positions.data() + views.size() * worker;
        if (first < last) bad[worker] = kernels().decode_stretches(job, first, last, mine);
    });
    bad_frame = *std::min_element(bad.begin(), bad.end());
    return bad_frame < job.frame_count ? QSGD_BAD_PAYLOAD : QSGD_OK;
}

// Where a sum goes: written, times the factor, as `dtype`; or subtracted from the float32 that are there.
struct Output {
    void* data;
    uint8_t dtype;
    float factor;
    bool subtract;
};

inline int decode_frames(const uint8_t* frames, uint64_t bytes, uint32_t frame_count,
                         const qsgd_expectation& expected, const Output& out, uint32_t allowed_threads,
                         uint32_t& bad_frame) {
    std::vector<FrameView> views(frame_count);
    int status = view_frames(frames, bytes, views, bad_frame);
    if (status == QSGD_OK) status = check_sum(views, expected, bad_frame);
    if (status != QSGD_OK) return status;
    DecodeJob job = {};
    job.frames = views.data(), job.frame_count = frame_count;
    job.dtype = out.dtype;
    job.alike = all_alike(views);
    job.stream = job.dtype == QSGD_FLOAT32 && expected.count >= kStreamElements && !out.subtract &&
                 reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
    job.count = expected.count, job.factor = out.factor, job.out = out.data, job.subtract = out.subtract;

    const uint32_t threads = useful_threads(allowed_threads, job.count);
    if (any_variable(views)) return decode_variable(views, job, threads, bad_frame);
    std::vector<FrameWork> work(static_cast<uint64_t>(frame_count) * threads);
    for (uint64_t k = 0; k < work.size(); ++k) work[k].base = views[k % frame_count].base;
    parallel(threads, ceil_div(job.count, kBlock), [&](uint32_t worker, uint64_t first, uint64_t last) {
        FrameWork* const mine = work.data() + static_cast<uint64_t>(frame_count) * worker;
        if (first < last) kernels().decode_blocks(job, first, last, mine);
    });
    return verify(views, work, bad_frame);
}

}  // namespace
}  // namespace qsgd
