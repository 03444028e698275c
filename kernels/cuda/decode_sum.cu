// Decode-and-sum of frames: scratch memory, the order of the kernels, the C ABI.
#include "cuda/frames.cuh"
#include "cuda/status.h"

namespace qsgd {
namespace {

constexpr uint32_t kMostFrames = 1 << 24;  // of variable length: sizes of scratch memory do not overflow

// Stretches of all frames together whose codes are in scratch memory at a time: 128 MiB.
constexpr uint64_t kCodedStretches = kMostBlocks / 16;

struct Scratch {
    uint64_t bytes;  // if all frames have fixed widths
    explicit Scratch(uint32_t frames) : bytes(sizeof(SumJob::State) + frames * sizeof(FrameView)) {}
};

struct VariableScratch {
    uint64_t streams, units;  // of a frame, in all and in a pass
    uint64_t views, offsets, codes, bytes;

    static bool possible(uint64_t count, uint32_t frames) {
        return count <= kMaxCount && frames <= kMostFrames;
    }
    VariableScratch(uint64_t count, uint32_t frames) : streams(rans_all_streams(count)) {
        const uint64_t stretches = stretches_of(count);
        const uint64_t share = frames < kCodedStretches ? kCodedStretches / frames : 1;
        units = (stretches < share ? stretches : share) * (kStretch / kUnit);
        views = Scratch(frames).bytes;
        offsets = views + frames * sizeof(CodedView);
        codes = offsets + 8 * (streams + 1) * frames;
        bytes = codes + sizeof(int16_t) * kUnit * units * frames;
    }

    CodedScratch at(uint8_t* scratch) const {
        return {reinterpret_cast<CodedView*>(scratch + views), reinterpret_cast<uint64_t*>(scratch + offsets),
                reinterpret_cast<int16_t*>(scratch + codes), streams, units};
    }
};

cudaError_t decode_sum(SumJob job, void* stream) {
    const uint64_t units = ceil_div(job.expected.count, kUnit);
    job.units = units;
    cudaError_t error = open_frames(job, stream);
    if (!error && job.coded.views) error = open_rans_payloads(job, stream);
    if (!error && job.coded.views) error = open_elias_payloads(job, stream);
    if (!error) error = sum_units(job, true, stream);
    const uint64_t pass = job.coded.units ? job.coded.units : units;
    do {
        const uint64_t left = units - job.first_unit;
        job.units = left < pass ? left : pass;
        if (!error && job.coded.views) error = decode_rans_streams(job, stream);
        if (!error && job.coded.views) error = decode_elias_blocks(job, stream);
        if (!error) error = sum_units(job, false, stream);
        job.first_unit += job.units;
    } while (job.first_unit < units);
    return error ? error : conclude_sum(job, stream);
}

}  // namespace
}  // namespace qsgd

using namespace qsgd;

int qsgd_cuda_decode_scratch(uint32_t frame_count, uint64_t* bytes) {
    if (!frame_count || !bytes) return QSGD_BAD_ARGUMENT;
    *bytes = Scratch(frame_count).bytes;
    return QSGD_OK;
}

int qsgd_cuda_decode_scratch_variable(uint64_t count, uint32_t frame_count, uint64_t* bytes) {
    if (!frame_count || !bytes || !VariableScratch::possible(count, frame_count)) return QSGD_BAD_ARGUMENT;
    *bytes = VariableScratch(count, frame_count).bytes;
    return QSGD_OK;
}

int qsgd_cuda_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                         const qsgd_expectation* expected, float factor, const qsgd_late* late, void* out,
                         qsgd_verdict* verdict, void* scratch, uint64_t scratch_bytes, void* stream) {
    if (!frames || !frame_count || !expected || !verdict || !scratch) return QSGD_BAD_ARGUMENT;
    if (!is_dtype(expected->dtype)) return QSGD_BAD_ARGUMENT;
    if ((!out && expected->count) || !aligned(out, element_bytes(expected->dtype))) return QSGD_BAD_ARGUMENT;
    if (!aligned(frames, 8) || !aligned(verdict, 4) || !aligned(scratch, 8)) return QSGD_BAD_ARGUMENT;
    if (scratch_bytes < Scratch(frame_count).bytes) return QSGD_BAD_ARGUMENT;
    auto* const state = static_cast<SumJob::State*>(scratch);
    SumJob job = {};
    job.frames = static_cast<const uint8_t*>(frames), job.bytes = bytes, job.frame_count = frame_count;
    job.expected = *expected, job.factor_ = factor;
    if (late) job.late = *late;
    job.out = out, job.verdict = verdict;
    job.state = state, job.views = reinterpret_cast<FrameView*>(state + 1);
    if (VariableScratch::possible(expected->count, frame_count)) {
        const VariableScratch variable(expected->count, frame_count);
        if (scratch_bytes >= variable.bytes) job.coded = variable.at(static_cast<uint8_t*>(scratch));
    }
    return status_of(decode_sum(job, stream));
}
