// Decoding and adding up frames: half a warp takes a unit of 512 elements of the result, frame after frame.
#include "cuda/quantize.cuh"
#include "cuda/unpack.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kSumming = 128;  // threads of a block: five blocks have room on a multiprocessor
constexpr uint32_t kWarps = kSumming / kWarp;
constexpr uint32_t kFewFrames =
    16;  // of which each thread has a sum of terms in shared memory; else each warp
constexpr uint32_t kSharedFrames = 512;  // up to so many

// Terms of the frames' checksums that a block finds.
class Terms {
  public:
    __device__ Terms(const SumJob& job)
        : job_(job), frames_(shared_frames(job.frame_count)), sums_(sums_of_frame(job.frame_count)) {
        for (uint32_t k = threadIdx.x; k < frames_ * sums_; k += kSumming) shared_memory<uint64_t>()[k] = 0;
        __syncthreads();
    }

    // Of one frame; all threads of a warp call it together.
    __device__ __forceinline__ void add(uint32_t frame, uint64_t terms) {
        uint64_t* const sums = shared_memory<uint64_t>() + sums_ * frame;
        if (sums_ == kSumming) {
            sums[threadIdx.x] += terms;
            return;
        }
        terms = across<kWarp>(terms, Sum());
        if (threadIdx.x % kWarp != 0) return;
        if (frame < frames_)
            sums[threadIdx.x / kWarp] += terms;
        else
            atomic_add(&job_.views[frame].found, terms);
    }

    // At the end.
    __device__ void publish() {
        __syncthreads();
        for (uint32_t frame = threadIdx.x / kWarp; frame < frames_; frame += kWarps) {
            uint64_t sum = 0;
            for (uint32_t k = threadIdx.x % kWarp; k < sums_; k += kWarp)
                sum += shared_memory<uint64_t>()[sums_ * frame + k];
            sum = across<kWarp>(sum, Sum());
            if (threadIdx.x % kWarp == 0) atomic_add(&job_.views[frame].found, sum);
        }
    }

    static uint64_t bytes(uint32_t frames) { return 8 * shared_frames(frames) * sums_of_frame(frames); }

  private:
    QSGD_HD uint32_t shared_frames(uint32_t frames) {
        return frames < kSharedFrames ? frames : kSharedFrames;
    }
    QSGD_HD uint32_t sums_of_frame(uint32_t frames) { return frames <= kFewFrames ? kSumming : kWarps; }

    const SumJob& job_;
    const uint32_t frames_, sums_;
};

// A bucket's grid.
struct Step {
    float step = 0, unrescale = 1;
    Step() = default;
    __device__ Step(const FrameView& view, uint64_t bucket) {
        const float scale = view.scales()[bucket];
        step = grid_step(scale, static_cast<float>(view.header.levels));
        unrescale = is_tiny(scale) ? kUnrescale : 1.0f;
    }
};

// Where a unit of a plain frame is: no memory has room for the results of 2^32 units.
__device__ __forceinline__ uint32_t bucket_of_unit(const FrameView& view, uint64_t unit) {
    const uint64_t units = view.header.bucket_size / kUnit;  // of a bucket
    return units >> 32 ? 0 : static_cast<uint32_t>(unit) / static_cast<uint32_t>(units);
}

// Adds a lane's values of a unit of a plain frame to its sums. What the two ways have in common the compiler
// would find before and after them, and keep in registers: it must not see that.
template <int kBits>
__device__ __forceinline__ void add_plain(uint32_t (&words)[kBits], const Step& step, float* sums) {
    const auto value = [&](float number, int exponent) {
        return number * (step.step * power_of_two(-exponent));
    };
    if (step.unrescale == 1.0f) {
        each_packed<kBits>(words, [&](int r, float n, int exponent) { sums[r] += value(n, exponent); });
    } else {
#pragma unroll
        for (int w = 0; w < kBits; ++w) opaque(words[w]);
        each_packed<kBits>(words, [&](int r, float n, int exponent) {
            sums[r] += value(n, exponent) * kUnrescale;
            opaque(sums[r]);
        });
    }
}

// Adds up a unit of up to 16 plain frames with codes of so many bits: each lane knows the step of another
// frame.
template <int kBits>
__device__ __forceinline__ void add_frames(const SumJob& job, Terms& terms, uint32_t first, uint32_t end,
                                           const Step& mine, const PackedUnit<kBits>& unit, float* sums) {
#pragma unroll 1
    for (uint32_t k = first; k < end; ++k) {
        uint32_t words[kBits];
        terms.add(k, unit.load(job.views[k], words));
        Step step;
        step.step = __shfl_sync(kAllLanes, mine.step, static_cast<int>(k), kLanes);
        step.unrescale = __shfl_sync(kAllLanes, mine.unrescale, static_cast<int>(k), kLanes);
        add_plain<kBits>(words, step, sums);
    }
}

// The sums of a unit where all frames are plain and have codes of as many bits: each lane fetches the words,
// and finds the step, of another frame.
__device__ __forceinline__ void sum_plain(const SumJob& job, Terms& terms, uint64_t unit, float* sums) {
    const uint32_t rows = unit_rows(unit, job.expected.count);
    for (uint32_t first = 0; first < job.frame_count; first += kLanes) {
        const uint32_t end = job.frame_count - first < kLanes ? job.frame_count : first + kLanes;
        Step mine;
        if (rows && first + lane_of_half_warp() < end) {
            const FrameView& view = job.views[first + lane_of_half_warp()];
            const uint8_t* const begin = view.payload + kUnit / 8 * view.bits * unit;
            const uint32_t bytes = packed_bytes(view.bits, rows);
            for (uint32_t byte = 0; byte < bytes; byte += 128) prefetch(begin + byte);
            mine = Step(view, bucket_of_unit(view, unit));
        }
        with_bits(job.views[0].bits, [&](auto b) {
            uint64_t here = unit;
            opaque(here);  // else what follows from it for all numbers of bits is found before
            add_frames(job, terms, first, end, mine, PackedUnit<b.value>(here, rows), sums);
        });
    }
}

__device__ __forceinline__ void undo_dither(const Header& h, uint64_t unit, float* numbers) {
    uint32_t words[4];
    Random(h.seed, h.rank, h.tensor, h.step).words(unit, lane_of_half_warp(), words);
    each_random(words, [&](int r, uint32_t number) {
        numbers[r] += 0.5f - static_cast<float>(number >> 8) * (1 / kFractionOne);
    });
}

// Adds a lane's values of a unit of any frame to its sums.
__device__ __forceinline__ void add_any(const SumJob& job, uint32_t frame, uint64_t unit, float* sums) {
    const FrameView& view = job.views[frame];
    const uint64_t first = kUnit * unit + lane_of_half_warp(), count = view.header.count;
    if (first >= count) return;
    float numbers[kRows];
    const auto keep = [&](int r, float number, int exponent) {
        numbers[r] = number * power_of_two(-exponent);
    };
    if (view.header.codec == QSGD_CODEC_TERNARY)
        each_ternary(view, unit, keep);
    else if (has_variable_width(view.header.codec))
        each_coded(job.coded.codes_of(frame, unit - job.first_unit), keep);
    else
        with_bits(view.bits, [&](auto b) {
            uint32_t words[b.value];
            PackedUnit<b.value>(unit, unit_rows(unit, count)).load(view, words);
            each_packed<b.value>(words, keep);
        });
    if (is_subtractive(view.header)) undo_dither(view.header, unit, numbers);
    BucketWalk walk(first, view.header.bucket_size);
    Step step(view, walk.bucket);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (kLanes * r >= count - first) break;
        if (r > 0 && walk.next_row()) step = Step(view, walk.bucket);
        sums[r] += numbers[r] * step.step * step.unrescale;
    }
}

__device__ __forceinline__ void sum_any(const SumJob& job, Terms& terms, uint64_t unit, float* sums) {
    for (uint32_t frame = 0; frame < job.frame_count; ++frame) {
        const FrameView& view = job.views[frame];
        add_any(job, frame, unit, sums);
        if (has_variable_width(view.header.codec)) continue;  // check_scales has all of its terms
        terms.add(frame, terms_of(view.base, first_payload_word(view, unit),
                                  first_payload_word(view, unit + 1), lane_of_half_warp(), kLanes));
    }
}

template <bool kPlain>
__device__ __forceinline__ void sum_unit(const SumJob& job, Terms& terms, uint64_t unit) {
    float sums[kRows] = {};
    if (kPlain)
        sum_plain(job, terms, unit, sums);
    else
        sum_any(job, terms, unit, sums);
    const float factor = job.factor();
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] *= factor;
    store_unit(sums, job.expected.dtype, unit, job.expected.count, job.out);
}

__device__ __forceinline__ bool all_scales(const FrameView& view, uint64_t first_bucket, uint64_t word) {
    const uint64_t left = view.at.buckets - first_bucket;
    return is_scale(static_cast<uint32_t>(word)) && (left < 2 || is_scale(static_cast<uint32_t>(word >> 32)));
}

// Check 6, and the terms of what lies between header and payload, or header and end where units have no part
// of their own: the part's warps share the frames.
__device__ __forceinline__ void check_scales(const SumJob& job, const Part& part, Terms& terms) {
    const uint64_t warps = part.threads() / kWarp;
    const uint64_t sharing = warps < job.frame_count ? 1 : warps / job.frame_count;  // one frame
    for (uint64_t item = part.thread() / kWarp; item < sharing * job.frame_count; item += warps) {
        const auto frame = static_cast<uint32_t>(item % job.frame_count);
        const FrameView& view = job.views[frame];
        const uint64_t first = item / job.frame_count * kWarp + threadIdx.x % kWarp;
        const bool all = has_variable_width(view.header.codec);
        const uint64_t end = (all ? view.header.frame_bytes : view.at.payload) / 8;
        uint64_t sum = 0;
        for (uint64_t k = first; k < end - kHeaderWords; k += sharing * kWarp) {
            const uint64_t word = *word_of(view.base, kHeaderWords + k);
            sum += checksum_term(word, kHeaderWords + k);
            if (2 * k < view.at.buckets && !all_scales(view, 2 * k, word))
                job.fail(kScales, frame, QSGD_BAD_SCALE);
        }
        terms.add(frame, sum);
    }
}

template <bool kPlain>
__device__ __forceinline__ void sum_part(const SumJob& job, const Part& part) {
    if (!job.opened()) return;
    if ((job.state->special == 0) != kPlain) return;
    Terms terms(job);
    if (job.first_unit == 0) check_scales(job, part, terms);
    const uint64_t pairs = ceil_div(job.units, 2);
    for (uint64_t pair = part.thread() / kWarp; pair < pairs; pair += part.threads() / kWarp)
        sum_unit<kPlain>(job, terms, job.first_unit + 2 * pair + half_warp_of_block() % 2);
    terms.publish();
}

// Two kernels, since what is fast needs fewer registers: only the device knows which of them has to work.
template <bool kPlain>
__global__ void __launch_bounds__(kSumming, kPlain ? 5 : 1) sum_frames(SumJob job) {
    sum_part<kPlain>(job, part_of_grid());
}

template <bool kPlain>
__global__ void __launch_bounds__(kSumming, kPlain ? 5 : 1) sum_many(JobList<SumJob> list) {
    each_part(list, [](const SumJob& job, const Part& part) { sum_part<kPlain>(job, part); });
}

// Check 7, the verdict, and NaN instead of a sum that failed: every block finds the verdict by itself.
__device__ __forceinline__ void conclude_part(const SumJob& job, const Part& part) {
    uint64_t& failure = *shared_memory<uint64_t>();
    const uint64_t before = job.state->failure;
    if (threadIdx.x == 0) failure = before;
    __syncthreads();
    if (before > failure_of(kChecksums, 0, 0))  // none so far, and every frame is open
        for (uint32_t frame = threadIdx.x; frame < job.frame_count; frame += kThreads)
            if (job.views[frame].found != job.views[frame].header.checksum)
                atomic_min(&failure, failure_of(kChecksums, frame, QSGD_BAD_CHECKSUM));
    __syncthreads();
    if (part.thread() == 0) *job.verdict = verdict_of(failure);
    if (failure == kNoFailure) return;
    with_dtype(job.expected.dtype, [&](auto t) {
        using T = decltype(t);
        auto* const out = static_cast<typename T::Element*>(job.out);
        for (uint64_t k = part.thread(); k < job.expected.count; k += part.threads())
            out[k] = T::narrow(float_from_bits(kNanBits));
    });
}

__global__ void __launch_bounds__(kThreads) conclude(SumJob job) { conclude_part(job, part_of_grid()); }

__global__ void __launch_bounds__(kThreads) conclude_many(JobList<SumJob> list) {
    each_job(list, [](const SumJob& job, uint32_t) { conclude_part(job, {0, 1}); });
}

}  // namespace

uint32_t blocks_of(const SumJob& job) { return blocks_for(ceil_div(job.units, kSumming / kLanes)); }

uint64_t shared_bytes_of(const SumJob& job) { return Terms::bytes(job.frame_count); }

cudaError_t sum_units(const SumJob& job, bool plain, void* stream) {
    return launch(plain ? sum_frames<true> : sum_frames<false>,
                  {blocks_of(job), kSumming, shared_bytes_of(job), stream}, job);
}

cudaError_t sum_units(const JobList<SumJob>& list, void* stream) {
    const Launch how = list.launch(kSumming, stream);
    const cudaError_t error = launch(sum_many<true>, how, list);
    return error ? error : launch(sum_many<false>, how, list);
}

cudaError_t conclude_sum(const SumJob& job, void* stream) {
    const uint64_t blocks = ceil_div(job.expected.count, kUnit * kThreads / kLanes);
    return launch(conclude, {blocks_for(blocks < 64 ? blocks : 64), kThreads, 8, stream}, job);
}

cudaError_t conclude_sums(const JobList<SumJob>& list, void* stream) {
    return launch(conclude_many, {blocks_for(list.count), kThreads, 8, stream}, list);
}

}  // namespace qsgd
