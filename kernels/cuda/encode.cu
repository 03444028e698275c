// Encoding with a fixed width: half a warp takes a unit of 512 elements, each thread one lane's 32 rows.
#include "cuda/encode.cuh"
#include "cuda/pack.cuh"
#include "cuda/quantize.cuh"

namespace qsgd {
namespace {

// Units that a block takes at a time: even, and for ternary codes a multiple of five, which are 32 of theirs.
constexpr uint32_t kPackedUnits = 16, kTernaryUnits = 20;
constexpr uint32_t kMostUnits = kTernaryUnits;
constexpr uint32_t kMostThreads = kMostUnits * kLanes;

struct Shared {
    uint64_t payload[kMostUnits * kUnit / 8];  // packed words, or ternary digits as bytes
    uint64_t parts[kMostThreads / kWarp];
    float scales[kMostUnits];
    uint32_t largest[kMostUnits];
};

template <bool kFindsScales>
struct Encoder {
    const EncodeJob& job;
    Shared& shared;
    const Random random;
    const float levels;
    const uint32_t units;  // of a block at a time
    uint64_t sum = 0;      // this thread's terms of the checksum

    // Those units with number `chunk`.
    __device__ __forceinline__ void encode(uint64_t chunk) {
        const uint64_t unit = chunk * units + half_warp_of_block();
        float v[kRows];
        load_unit(job.gradient, job.spec.dtype, unit, job.spec.count, v);
        if (kFindsScales) {
            divide(v, Inverse(find_scale(v), levels));
        } else {
            divide(v, unit, job.spec, job.scales(), levels);
            limit(v, levels * kFractionOne);
        }
        uint32_t words[4];
        random.words(unit, lane_of_half_warp(), words);
        if (job.spec.codec == QSGD_CODEC_TERNARY)
            encode_ternary(chunk, v, words);
        else
            encode_packed(chunk, v, words);
        if (kFindsScales) put_scales(chunk);
        __syncthreads();  // shared memory is used again
    }

  private:
    // The scale of the bucket that this half-warp's unit is of; every thread takes part.
    __device__ __forceinline__ float find_scale(const float* v) {
        const uint32_t self = half_warp_of_block();
        float scale;
        if (job.spec.norm == QSGD_NORM_L2) {  // of one unit
            double squares = 0;
#pragma unroll
            for (int r = 0; r < kRows; ++r) squares += static_cast<double>(v[r]) * static_cast<double>(v[r]);
            scale = l2_scale(across<kLanes>(squares, Sum()));
        } else {
            float magnitude = 0;
#pragma unroll
            for (int r = 0; r < kRows; ++r) magnitude = larger_magnitude(magnitude, v[r]);
            uint32_t largest = across<kLanes>(bits_from_float(magnitude), Maximum());
            if (job.group > 1) {
                if (lane_of_half_warp() == 0) shared.largest[self] = largest;
                __syncthreads();
                for (uint32_t k = 0, first = self / job.group * job.group; k < job.group; ++k)
                    largest = Maximum()(largest, shared.largest[first + k]);
            }
            scale = max_scale(largest);
        }
        if (self % job.group == 0 && lane_of_half_warp() == 0) shared.scales[self / job.group] = scale;
        return scale;
    }

    // Two at a time; the other one of the last may be a zero.
    __device__ __forceinline__ void put_scales(uint64_t chunk) {
        const uint32_t buckets = units / job.group;
        const uint64_t first = chunk * buckets + 2 * threadIdx.x;
        if (2 * threadIdx.x >= buckets || first >= job.at.buckets) return;
        const uint64_t low = bits_from_float(shared.scales[2 * threadIdx.x]);
        const uint64_t high =
            first + 1 < job.at.buckets ? bits_from_float(shared.scales[2 * threadIdx.x + 1]) : 0;
        sum += put_word(job.frame, kHeaderWords + first / 2, high << 32 | low);
    }

    __device__ __forceinline__ void encode_packed(uint64_t chunk, const float* v,
                                                  const uint32_t (&random_words)[4]) {
        const uint32_t bits = code_bits(job.spec.levels);
        auto* const words = reinterpret_cast<uint32_t*>(shared.payload);
        with_bits(bits, [&](auto b) {
            uint32_t codes[kRows];
            round_narrow<b.value>(v, random_words, codes);
            pack_bits<b.value>(codes, words + kLanes * b.value * half_warp_of_block() + lane_of_half_warp());
        });
        __syncthreads();
        put_payload(chunk, 8 * bits * units, [&](uint32_t k) { return shared.payload[k]; });
    }

    __device__ __forceinline__ void encode_ternary(uint64_t chunk, const float* v,
                                                   const uint32_t (&random_words)[4]) {
        uint32_t codes[kRows];
        round_narrow<8>(v, random_words, codes);
        auto* const digits =
            reinterpret_cast<uint8_t*>(shared.payload) + kUnit * half_warp_of_block() + lane_of_half_warp();
#pragma unroll
        for (int r = 0; r < kRows; ++r) digits[kLanes * r] = static_cast<uint8_t>((codes[r] >> 24) + 1);
        __syncthreads();
        constexpr uint32_t kUnits = kTernaryUnits * kUnit / kTernaryUnit;
        put_payload(chunk, 2 * kUnits,
                    [&](uint32_t k) { return ternary_word(shared.payload + k / 2 * 10 + k % 2); });
    }

    // The payload's words of a chunk, of which each has `words`.
    template <class Word>
    __device__ __forceinline__ void put_payload(uint64_t chunk, uint32_t words, Word word) {
        const uint64_t first = job.at.payload / 8 + chunk * words, end = job.at.coded_bytes / 8;
        for (uint32_t k = threadIdx.x; k < words && first + k < end; k += blockDim.x)
            sum += put_word(job.frame, first + k, word(k));
    }
};

template <bool kFindsScales>
__device__ __forceinline__ void encode_part(const EncodeJob& job, const Part& part) {
    Shared& shared = *shared_memory<Shared>();
    Encoder<kFindsScales> encoder = {job, shared,
                                     Random(job.seed(), job.spec.rank, job.spec.tensor, job.step()),
                                     static_cast<float>(job.spec.levels), blockDim.x / kLanes};
    const uint64_t chunks = ceil_div(job.spec.count, kUnit * encoder.units);
    for (uint64_t chunk = part.block; chunk < chunks; chunk += part.blocks) encoder.encode(chunk);
    if (!kFindsScales)
        encoder.sum +=
            terms_of(job.frame, kHeaderWords, job.scale_words_end(), part.thread(), part.threads());
    const uint64_t total = block_sum(encoder.sum, shared.parts);
    if (threadIdx.x == 0) job.terms[part.block] = total;
}

template <bool kFindsScales>
__global__ void __launch_bounds__(kMostThreads) encode_units(EncodeJob job) {
    encode_part<kFindsScales>(job, part_of_grid());
}

__global__ void __launch_bounds__(kMostThreads, 1) encode_units_of_many(JobList<EncodeJob> list) {
    each_part(list, [](const EncodeJob& job, const Part& part) { encode_part<true>(job, part); });
}

// The rest of the frame, by one block: the header, and a zero that may follow the scales.
__device__ __forceinline__ void finish(const EncodeJob& job, uint32_t blocks, const double* squared_norm) {
    uint64_t sum = 0;
    for (uint32_t k = threadIdx.x; k < blocks; k += blockDim.x) sum += job.terms[k];
    sum = block_sum(sum, shared_memory<uint64_t>());
    if (threadIdx.x != 0) return;
    if (8 * job.scale_words_end() < job.at.payload) sum += put_word(job.frame, job.scale_words_end(), 0);
    Header header = job.header(job.at, squared_norm);
    header.checksum = sum + header_terms(header);
    put_header(job.frame, header);
}

__global__ void __launch_bounds__(kThreads)
    finish_frame(EncodeJob job, uint32_t blocks, const double* squared_norm) {
    finish(job, blocks, squared_norm);
}

__global__ void __launch_bounds__(kThreads) finish_many(JobList<EncodeJob> list) {
    each_job(list, [](const EncodeJob& job, uint32_t blocks) { finish(job, blocks, nullptr); });
}

// Units in a bucket, if a block can find its scale on the way; 0 if not.
uint32_t group_of(const qsgd_spec& spec, uint32_t units) {
    if (spec.bucket_size % kUnit != 0) return 0;
    const uint64_t group = spec.bucket_size / kUnit;
    const bool sums_in_lanes = spec.norm != QSGD_NORM_L2 || group == 1;
    return sums_in_lanes && group <= units / 2 && units % (2 * group) == 0 ? static_cast<uint32_t>(group) : 0;
}

uint32_t units_of_block(uint8_t codec) { return codec == QSGD_CODEC_TERNARY ? kTernaryUnits : kPackedUnits; }

constexpr uint64_t kFinishingShared = 8 * kThreads / kWarp;

}  // namespace

uint32_t blocks_of(const EncodeJob& job) {
    return job.spec.count ? blocks_for(ceil_div(job.spec.count, kUnit * units_of_block(job.spec.codec))) : 0;
}

bool find_group(EncodeJob& job) {
    job.group = group_of(job.spec, units_of_block(job.spec.codec));
    return job.group != 0;
}

cudaError_t encode_frame(EncodeJob job, const TreeScratch& tree, void* stream) {
    const uint32_t blocks = blocks_of(job), threads = units_of_block(job.spec.codec) * kLanes;
    const double* squared_norm = nullptr;
    cudaError_t error = cudaSuccess;
    if (!find_group(job) && blocks) error = find_scales(job, tree, stream);
    if (!error && blocks)
        error = launch(job.group ? encode_units<true> : encode_units<false>,
                       {blocks, threads, sizeof(Shared), stream}, job);
    const bool norm = job.spec.flags & QSGD_FLAG_SQUARED_NORM;  // in the scratch memory that scales needed
    if (!error && norm) error = find_squared_norm(job, tree, &squared_norm, stream);
    return error ? error
                 : launch(finish_frame, {1, kThreads, kFinishingShared, stream}, job, blocks, squared_norm);
}

cudaError_t encode_frames(ListWriter<EncodeJob>& jobs, uint8_t codec, void* stream) {
    JobList<EncodeJob> list;
    cudaError_t error = jobs.finish(sizeof(Shared), list);
    if (!error && list.blocks)
        error = launch(encode_units_of_many, list.launch(units_of_block(codec) * kLanes, stream), list);
    const Launch finishing = {blocks_for(list.count), kThreads, kFinishingShared, stream};
    return error || !list.count ? error : launch(finish_many, finishing, list);
}

}  // namespace qsgd
