// Decoding and adding up frames: half a warp takes a unit of 512 elements of the result, frame after frame.
#include "cuda/quantize.cuh"
#include "cuda/status.h"
#include "cuda/unpack.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kWarps = kThreads / kWarp;
constexpr uint32_t kSharedFrames = 512;  // whose terms are added up in shared memory first

// Terms of the frames' checksums that a warp finds.
class WarpTerms {
  public:
    __device__ WarpTerms(const SumJob& job) : job_(job), shared_(shared_memory<uint64_t>()) {
        for (uint32_t k = threadIdx.x; k < kWarps * frames(); k += kThreads) shared_[k] = 0;
        __syncthreads();
    }

    // Of all lanes of a warp, of one frame.
    __device__ __forceinline__ void add(uint32_t frame, uint64_t terms) {
        terms = across<kWarp>(terms, Sum());
        if (threadIdx.x % kWarp != 0) return;
        if (frame < kSharedFrames)
            shared_[kWarps * frame + threadIdx.x / kWarp] += terms;
        else
            atomic_add(&job_.views[frame].found, terms);
    }

    // At the end.
    __device__ void publish() {
        __syncthreads();
        for (uint32_t frame = threadIdx.x; frame < frames(); frame += kThreads) {
            uint64_t sum = 0;
            for (uint32_t warp = 0; warp < kWarps; ++warp) sum += shared_[kWarps * frame + warp];
            atomic_add(&job_.views[frame].found, sum);
        }
    }

    static uint64_t bytes(uint32_t frames) { return 8 * kWarps * (frames < kSharedFrames ? frames : kSharedFrames); }

  private:
    __device__ uint32_t frames() const { return job_.frame_count < kSharedFrames ? job_.frame_count : kSharedFrames; }

    const SumJob& job_;
    uint64_t* const shared_;
};

// A bucket's grid, for codes / 2^exponent.
struct Step {
    float step, unrescale;
    __device__ Step(const FrameView& view, uint64_t bucket) {
        const float scale = view.scales()[bucket];
        step = grid_step(scale, static_cast<float>(view.header.levels));
        unrescale = is_tiny(scale) ? kUnrescale : 1.0f;
    }
};

// Adds a lane's values of a unit of one frame to its sums.
struct Adder {
    const FrameView& view;
    const uint64_t unit, count;
    float* const sums;

    // Of a plain frame.
    __device__ __forceinline__ void add_plain() const {
        const uint64_t units = view.header.bucket_size / kUnit;  // of a bucket
        const Step step(view, units == 1 ? unit : unit / units);
        const auto value = [&](float number, int exponent) { return number * (step.step * power_of_two(-exponent)); };
        if (step.unrescale == 1.0f)
            each_packed([&](int r, float number, int exponent) { sums[r] += value(number, exponent); });
        else
            each_packed([&](int r, float number, int exponent) { sums[r] += value(number, exponent) * kUnrescale; });
    }

    // Of any frame.
    __device__ __forceinline__ void add_any() const {
        float numbers[kRows];
        const auto keep = [&](int r, float number, int exponent) { numbers[r] = number * power_of_two(-exponent); };
        if (view.header.codec == QSGD_CODEC_TERNARY)
            each_ternary(view, unit, keep);
        else
            each_packed(keep);
        if (is_subtractive(view.header)) undo_dither(numbers);
        const uint64_t first = kUnit * unit + lane_of_half_warp();
        if (first >= count) return;
        BucketWalk walk(first, view.header.bucket_size);
        Step step(view, walk.bucket);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (kLanes * r >= count - first) break;
            if (r > 0 && walk.next_row()) step = Step(view, walk.bucket);
            sums[r] += numbers[r] * step.step * step.unrescale;
        }
    }

  private:
    template <class Body>
    __device__ __forceinline__ void each_packed(Body body) const {
        with_bits(view.bits, [&](auto b) {
            uint32_t words[b.value];
            load_string<b.value>(view, unit, words);
            qsgd::each_packed<b.value>(words, body);
        });
    }

    __device__ __forceinline__ void undo_dither(float* numbers) const {
        const Header& h = view.header;
        uint32_t words[4];
        Random(h.seed, h.rank, h.tensor, h.step).words(unit, lane_of_half_warp(), words);
        each_random(words, [&](int r, uint32_t random) {
            numbers[r] += 0.5f - static_cast<float>(random) * (1 / kFractionOne);
        });
    }
};

template <bool kPlain>
__device__ __forceinline__ void sum_unit(const SumJob& job, WarpTerms& terms, uint64_t unit) {
    float sums[kRows] = {};
    const bool there = kUnit * unit < job.expected.count;
    for (uint32_t frame = 0; frame < job.frame_count; ++frame) {
        const FrameView& view = job.views[frame];
        const Adder adder = {view, unit, job.expected.count, sums};
        if (there && kPlain) adder.add_plain();
        if (there && !kPlain) adder.add_any();
        terms.add(frame, terms_of(view.base, first_payload_word(view, unit), first_payload_word(view, unit + 1),
                                  lane_of_half_warp(), kLanes));
    }
    const float factor = job.factor();
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] *= factor;
    store_unit(sums, job.expected.dtype, unit, job.expected.count, job.out);
}

__device__ __forceinline__ bool all_scales(const FrameView& view, uint64_t first_bucket, uint64_t word) {
    const uint64_t left = view.at.buckets - first_bucket;
    return is_scale(static_cast<uint32_t>(word)) && (left < 2 || is_scale(static_cast<uint32_t>(word >> 32)));
}

// Check 6, and the terms of what lies between header and payload: the grid's warps share the frames.
__device__ __forceinline__ void check_scales(const SumJob& job, WarpTerms& terms) {
    const uint64_t warps = threads_of_grid() / kWarp;
    const uint64_t sharing = warps < job.frame_count ? 1 : warps / job.frame_count;  // one frame
    for (uint64_t item = thread_of_grid() / kWarp; item < sharing * job.frame_count; item += warps) {
        const auto frame = static_cast<uint32_t>(item % job.frame_count);
        const FrameView& view = job.views[frame];
        const uint64_t first = item / job.frame_count * kWarp + threadIdx.x % kWarp;
        uint64_t sum = 0;
        for (uint64_t k = first; k < view.at.payload / 8 - kHeaderWords; k += sharing * kWarp) {
            const uint64_t word = *word_of(view.base, kHeaderWords + k);
            sum += checksum_term(word, kHeaderWords + k);
            if (2 * k < view.at.buckets && !all_scales(view, 2 * k, word)) job.fail(kScales, frame, QSGD_BAD_SCALE);
        }
        terms.add(frame, sum);
    }
}

// Two kernels, since what is fast needs fewer registers: only the device knows which of them has to work.
template <bool kPlain>
__global__ void __launch_bounds__(kThreads) sum_frames(SumJob job) {
    if (job.state->failure < failure_of(kScales, 0, 0)) return;  // no frame's parts are where they should be
    if ((job.state->special == 0) != kPlain) return;
    WarpTerms terms(job);
    check_scales(job, terms);
    const uint64_t pairs = ceil_div(job.expected.count, 2 * kUnit);
    for (uint64_t pair = thread_of_grid() / kWarp; pair < pairs; pair += threads_of_grid() / kWarp)
        sum_unit<kPlain>(job, terms, 2 * pair + half_warp_of_block() % 2);
    terms.publish();
}

// Check 7, the verdict, and NaN instead of a sum that failed: every block finds the verdict by itself.
__global__ void __launch_bounds__(kThreads) conclude(SumJob job) {
    uint64_t& failure = *shared_memory<uint64_t>();
    if (threadIdx.x == 0) failure = job.state->failure;
    __syncthreads();
    if (failure > failure_of(kChecksums, 0, 0))  // none so far, and every frame is open
        for (uint32_t frame = threadIdx.x; frame < job.frame_count; frame += kThreads)
            if (job.views[frame].found != job.views[frame].header.checksum)
                atomic_min(&failure, failure_of(kChecksums, frame, QSGD_BAD_CHECKSUM));
    __syncthreads();
    if (thread_of_grid() == 0) *job.verdict = verdict_of(failure);
    if (failure == kNoFailure) return;
    with_dtype(job.expected.dtype, [&](auto t) {
        using T = decltype(t);
        auto* const out = static_cast<typename T::Element*>(job.out);
        for (uint64_t k = thread_of_grid(); k < job.expected.count; k += threads_of_grid())
            out[k] = T::narrow(float_from_bits(kNanBits));
    });
}

cudaError_t decode_sum(const SumJob& job, void* stream) {
    constexpr uint64_t kUnits = kThreads / kLanes;
    const uint32_t blocks = blocks_for(ceil_div(job.expected.count, kUnits * kUnit));
    cudaError_t error = open_frames(job, stream);
    const Launch sum = {blocks, kThreads, WarpTerms::bytes(job.frame_count), stream};
    if (!error) error = launch(sum_frames<true>, sum, job);
    if (!error) error = launch(sum_frames<false>, sum, job);
    const uint32_t few = blocks < 64 ? blocks : 64;
    return error ? error : launch(conclude, {few, kThreads, 8, stream}, job);
}

uint64_t scratch_bytes_of(uint32_t frame_count) { return sizeof(SumJob::State) + static_cast<uint64_t>(frame_count) * sizeof(FrameView); }

}  // namespace
}  // namespace qsgd

using namespace qsgd;

int qsgd_cuda_decode_scratch(uint32_t frame_count, uint64_t* bytes) {
    if (!frame_count || !bytes) return QSGD_BAD_ARGUMENT;
    *bytes = scratch_bytes_of(frame_count);
    return QSGD_OK;
}

int qsgd_cuda_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count, const qsgd_expectation* expected,
                         float factor, const qsgd_late* late, void* out, qsgd_verdict* verdict, void* scratch,
                         uint64_t scratch_bytes, void* stream) {
    if (!frames || !frame_count || !expected || !verdict || !scratch) return QSGD_BAD_ARGUMENT;
    if (expected->dtype < QSGD_FLOAT32 || expected->dtype > QSGD_BFLOAT16) return QSGD_BAD_ARGUMENT;
    if ((!out && expected->count) || !aligned(out, element_bytes(expected->dtype))) return QSGD_BAD_ARGUMENT;
    if (!aligned(frames, 8) || !aligned(verdict, 4) || !aligned(scratch, 8)) return QSGD_BAD_ARGUMENT;
    if (scratch_bytes < scratch_bytes_of(frame_count)) return QSGD_BAD_ARGUMENT;
    auto* const state = static_cast<SumJob::State*>(scratch);
    SumJob job = {};
    job.frames = static_cast<const uint8_t*>(frames), job.bytes = bytes, job.frame_count = frame_count;
    job.expected = *expected, job.factor_ = factor;
    if (late) job.late = *late;
    job.out = out, job.verdict = verdict;
    job.state = state, job.views = reinterpret_cast<FrameView*>(state + 1);
    return status_of(decode_sum(job, stream));
}
