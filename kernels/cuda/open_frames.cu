// Where each frame begins, and checks 1 to 5: one warp looks at 32 headers at a time.
#include "cuda/frames.cuh"

namespace qsgd {
namespace {

// Checks 1 to 4 of the frame at `base`.
__device__ int read_header(const SumJob& job, const uint8_t* base, uint64_t bytes, Header& h) {
    if (bytes < sizeof h) return QSGD_TRUNCATED;
    uint64_t words[kHeaderWords];
    for (uint64_t k = 0; k < kHeaderWords; ++k) words[k] = *word_of(base, k);
    memcpy(&h, words, sizeof h);
    const int status = check_header(h, bytes);
    const bool known = rounds_to_fixed_width(h.codec) || (has_variable_width(h.codec) && job.coded.views);
    if (status == QSGD_OK && !known) return QSGD_BAD_CODEC;
    if (status != QSGD_ERROR_FRAME) return status;
    const uint64_t found = header_terms(h) + terms_of(base, kHeaderWords, h.frame_bytes / 8, 0, 1);
    return found == h.checksum ? status : QSGD_BAD_CHECKSUM;
}

__device__ void open(const SumJob& job, uint32_t number, const uint8_t* base, const Header& h,
                     uint32_t first_bits) {
    FrameView& view = job.views[number];
    view.base = base;
    view.header = h;
    view.at = layout(h.codec, h.levels, h.count, h.bucket_size);
    view.bits = code_bits(h.levels);
    view.payload = base + view.at.payload, view.key = checksum_key(view.at.payload / 8);
    view.found = header_terms(h);
    if (!view.plain() || view.bits != first_bits) atomic_add(&job.state->special, 1);
    qsgd_expectation expected = job.expected;
    if (job.late.draw) expected.step = job.late.draw->step;
    const int agreement = check_agreement(h, expected, number);
    if (agreement != QSGD_OK) job.fail(kAgreement, number, agreement);
}

// Each lane looks where its frame begins if those before it are as long as the first: what is found there
// counts as far as that is so.
__device__ void open_all(const SumJob& job) {
    const uint32_t lane = threadIdx.x;
    if (lane == 0) *job.state = {kNoFailure, 0};
    __syncwarp();
    uint64_t begin = 0;
    uint32_t first_bits = 0;
    for (uint32_t first = 0; first < job.frame_count;) {
        const uint64_t left = job.bytes - begin;
        Header h = {};
        int status = lane == 0 ? read_header(job, job.frames + begin, left, h) : QSGD_TRUNCATED;
        const uint64_t length = __shfl_sync(kAllLanes, status == QSGD_OK ? h.frame_bytes : 0, 0);
        if (first == 0) first_bits = __shfl_sync(kAllLanes, status == QSGD_OK ? code_bits(h.levels) : 0, 0);
        if (lane > 0 && length > 0 && lane < job.frame_count - first && lane * length <= left)
            status = read_header(job, job.frames + begin + lane * length, left - lane * length, h);
        const uint32_t differ = ~__ballot_sync(kAllLanes, status == QSGD_OK && h.frame_bytes == length);
        const uint32_t here = job.frame_count - first < kWarp ? job.frame_count - first : kWarp;
        const uint32_t alike = differ ? __ffs(differ) - 1 : kWarp;
        const uint32_t last = alike < here ? alike : here - 1;  // that looked at the right place
        if (lane <= last && status == QSGD_OK)
            open(job, first + lane, job.frames + begin + lane * length, h, first_bits);
        if (lane == last && status != QSGD_OK) job.fail(kHeaders, first + lane, status);
        if (!__shfl_sync(kAllLanes, status == QSGD_OK, last)) return;
        begin += last * length + __shfl_sync(kAllLanes, h.frame_bytes, last);
        first += last + 1;
        if (first == job.frame_count && begin < job.bytes && lane == 0)
            job.fail(kEnd, first - 1, QSGD_TRAILING_BYTES);
    }
}

__global__ void __launch_bounds__(kWarp) open_of_one(SumJob job) { open_all(job); }

__global__ void __launch_bounds__(kWarp) open_of_many(JobList<SumJob> list) {
    each_job(list, [](const SumJob& job, uint32_t) { open_all(job); });
}

}  // namespace

cudaError_t open_frames(const SumJob& job, void* stream) {
    return launch(open_of_one, {1, kWarp, 0, stream}, job);
}

cudaError_t open_frames(const JobList<SumJob>& list, void* stream) {
    return launch(open_of_many, {blocks_for(list.count), kWarp, 0, stream}, list);
}

}  // namespace qsgd
