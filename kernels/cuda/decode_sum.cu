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
    const uint64_t units = job.units;
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

int check(const qsgd_summation& one) {
    if (!one.frames || !one.frame_count || !one.expected || !one.verdict) return QSGD_BAD_ARGUMENT;
    const uint32_t dtype = one.expected->dtype;
    if (!is_dtype(dtype) || (!one.out && one.expected->count) || !aligned(one.out, element_bytes(dtype)))
        return QSGD_BAD_ARGUMENT;
    return aligned(one.frames, 8) && aligned(one.verdict, 4) ? QSGD_OK : QSGD_BAD_ARGUMENT;
}

SumJob job_of(const qsgd_summation& one, const qsgd_late* late, void* scratch) {
    auto* const state = static_cast<SumJob::State*>(scratch);
    SumJob job = {};
    job.frames = static_cast<const uint8_t*>(one.frames), job.bytes = one.bytes;
    job.frame_count = one.frame_count;
    job.expected = *one.expected, job.factor_ = one.factor;
    if (late) job.late = *late;
    job.out = one.out, job.verdict = one.verdict;
    job.state = state, job.views = reinterpret_cast<FrameView*>(state + 1);
    job.units = ceil_div(one.expected->count, kUnit);
    return job;
}

uint64_t list_bytes(uint32_t count) { return sizeof(Listed<SumJob>) * count; }

uint64_t scratch_of_many(const qsgd_summation* all, uint32_t count) {
    uint64_t bytes = list_bytes(count);
    for (uint32_t k = 0; k < count; ++k) bytes += Scratch(all[k].frame_count).bytes;
    return bytes;
}

cudaError_t decode_many(const qsgd_summation* all, uint32_t count, const qsgd_late* late, void* scratch,
                        void* stream) {
    ListWriter<SumJob> jobs(scratch, stream);
    auto* at = static_cast<uint8_t*>(scratch) + list_bytes(count);
    uint64_t shared = 0;
    for (uint32_t k = 0; k < count; ++k) {
        const SumJob job = job_of(all[k], late, at);
        jobs.add(job, blocks_of(job));
        if (shared < shared_bytes_of(job)) shared = shared_bytes_of(job);
        at += Scratch(all[k].frame_count).bytes;
    }
    JobList<SumJob> list;
    cudaError_t error = jobs.finish(shared, list);
    if (!error) error = open_frames(list, stream);
    if (!error) error = sum_units(list, stream);
    return error ? error : conclude_sums(list, stream);
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
    if (!scratch || !aligned(scratch, 8)) return QSGD_BAD_ARGUMENT;
    const qsgd_summation one = {frames, bytes, expected, frame_count, factor, out, verdict};
    const int status = check(one);
    if (status != QSGD_OK) return status;
    if (scratch_bytes < Scratch(frame_count).bytes) return QSGD_BAD_ARGUMENT;
    SumJob job = job_of(one, late, scratch);
    if (VariableScratch::possible(expected->count, frame_count)) {
        const VariableScratch variable(expected->count, frame_count);
        if (scratch_bytes >= variable.bytes) job.coded = variable.at(static_cast<uint8_t*>(scratch));
    }
    return status_of(decode_sum(job, stream));
}

int qsgd_cuda_decode_sum_many_scratch(const qsgd_summation* all, uint32_t count, uint64_t* bytes) {
    if (!all || !count || !bytes) return QSGD_BAD_ARGUMENT;
    for (uint32_t k = 0; k < count; ++k)
        if (!all[k].frame_count) return QSGD_BAD_ARGUMENT;
    *bytes = scratch_of_many(all, count);
    return QSGD_OK;
}

int qsgd_cuda_decode_sum_many(const qsgd_summation* all, uint32_t count, const qsgd_late* late, void* scratch,
                              uint64_t scratch_bytes, void* stream) {
    if (!all || !count || !scratch || !aligned(scratch, 8)) return QSGD_BAD_ARGUMENT;
    for (uint32_t k = 0; k < count; ++k) {
        const int status = check(all[k]);
        if (status != QSGD_OK) return status;
    }
    if (scratch_bytes < scratch_of_many(all, count)) return QSGD_BAD_ARGUMENT;
    return status_of(decode_many(all, count, late, scratch, stream));
}
