// Codes to Elias' strings (docs/wire_format.md, section 6): half a warp takes a block, a thread 32
// consecutive codes of a unit.
#include "cuda/elias_frame.cuh"
#include "cuda/elias_writer.cuh"
#include "cuda/quantize.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kHalfWarps = kThreads / kLanes;
constexpr uint32_t kLaneCodes = kRows + 2;  // with a gap, so that lanes meet other banks

struct Shared {
    EliasWords words;
    int16_t codes[kHalfWarps][kLanes * kLaneCodes];
    uint32_t strings[1];  // unit_room words for each half-warp
};

// Where in shared memory this lane's code of a row is: rows are kLanes long, what a lane then takes is kRows.
__device__ __forceinline__ uint32_t place_of(int row) {
    return row / 2 * kLaneCodes + row % 2 * kLanes + lane_of_half_warp();
}

__device__ __forceinline__ BitString with_sign(BitString s, int32_t code) {
    return {s.bits << 1 | (code < 0), s.length + 1};
}

struct Encoder {
    const EliasFrame& frame;
    Shared& shared;
    const Random random;
    int16_t* const unit;        // this half-warp's codes
    const int16_t* const mine;  // this lane's, kRows of them
    uint32_t* const words;

    __device__ Encoder(const EliasFrame& f, Shared& s)
        : frame(f),
          shared(s),
          random(f.job.seed(), f.job.spec.rank, f.job.spec.tensor, f.job.step()),
          unit(s.codes[half_warp_of_block()]),
          mine(unit + lane_of_half_warp() * kLaneCodes),
          words(s.strings + half_warp_of_block() * f.unit_room) {}

    // The block with this number, if it is there: both half-warps of a warp do these together.
    __device__ __forceinline__ void encode_dense(uint64_t block, bool here) {
        quantize(block);
        const uint64_t first = kUnit * block + kRows * lane_of_half_warp();
        const uint64_t left = first < frame.job.spec.count ? frame.job.spec.count - first : 0;
        BlockWriter writer = begin(block, here);
        writer.append([&](auto put) {
#pragma unroll 8
            for (uint32_t k = 0; k < kRows; ++k) {
                if (k >= left) break;
                const int32_t code = mine[k];
                const BitString number = elias(shared.words, magnitude_of(code) + 1);
                put(code ? with_sign(number, code) : number);
            }
        });
        finish(writer, block, here);
    }

    __device__ __forceinline__ void encode_sparse(uint64_t block, bool here) {
        quantize(block);
        BlockWriter writer = begin(block, here);
        const uint32_t lanes = nonzeros();
        put_count(writer, across<kLanes>(static_cast<uint32_t>(__popc(lanes)), Sum()), here);
        append_nonzeros(writer, lanes, 0, 0);
        finish(writer, block, here);
    }

    // The same where it is several units long, whose codes are there.
    __device__ __forceinline__ void encode_spread(uint64_t block, bool here) {
        const uint32_t size = frame.block / kUnit;
        const uint64_t first = block * size, all = ceil_div(frame.job.spec.count, kUnit);
        const auto units = static_cast<uint32_t>(!here ? 0 : all - first < size ? all - first : size);
        BlockWriter writer = begin(block, here);
        uint32_t count = 0, last = 0;
        for (uint32_t u = lane_of_half_warp(); u < units; u += kLanes) count += frame.nonzeros[first + u];
        put_count(writer, across<kLanes>(count, Sum()), here);
        for (uint32_t u = 0; u < size; u += kLanes) {
            const uint32_t own = u + lane_of_half_warp();
            uint32_t left = half_warp_ballot(own < units && frame.nonzeros[first + own] > 0);
            while (__any_sync(kAllLanes, left > 0)) {
                const uint32_t next = u + static_cast<uint32_t>(__ffs(static_cast<int>(left))) - 1;
                load(first + next, left > 0);
                last = append_nonzeros(writer, nonzeros(), next * kUnit, last);
                left &= left - 1;
            }
        }
        finish(writer, block, here);
    }

  private:
    __device__ __forceinline__ void quantize(uint64_t number) {
        each_code(frame.job, random, number,
                  [&](int r, int32_t code) { unit[place_of(r)] = static_cast<int16_t>(code); });
        __syncwarp();
    }
    // Zeros if it is not there.
    __device__ __forceinline__ void load(uint64_t number, bool here) {
        const int16_t* const codes = frame.codes + kUnit * number + lane_of_half_warp();
        for (int r = 0; r < kRows; ++r) unit[place_of(r)] = here ? codes[kLanes * r] : int16_t{0};
        __syncwarp();
    }

    __device__ __forceinline__ BlockWriter begin(uint64_t block, bool here) {
        return BlockWriter(words, frame.string(here ? block : 0));
    }
    __device__ __forceinline__ void finish(BlockWriter& writer, uint64_t block, bool here) {
        const uint32_t bytes = writer.finish(here);
        if (here && lane_of_half_warp() == 0) frame.lengths[block] = static_cast<uint16_t>(bytes);
    }

    // Which of this lane's codes are not 0.
    __device__ __forceinline__ uint32_t nonzeros() const {
        uint32_t which = 0;
#pragma unroll
        for (uint32_t k = 0; k < kRows; ++k) which |= static_cast<uint32_t>(mine[k] != 0) << k;
        return which;
    }

    __device__ __forceinline__ void put_count(BlockWriter& writer, uint32_t count, bool here) {
        writer.append([&](auto put) {
            if (here && lane_of_half_warp() == 0) put(elias(shared.words, count + 1));
        });
    }

    // The strings of nonzeros, which `which` tells, of a unit that begins at element `begin` of the block.
    // Behind element `last` of the block there was none so far; returns the same for the next unit. Elements
    // are counted from 1 on.
    __device__ __forceinline__ uint32_t append_nonzeros(BlockWriter& writer, uint32_t which, uint32_t begin,
                                                        uint32_t last) {
        const uint32_t first = begin + kRows * lane_of_half_warp() + 1;
        const uint32_t own =
            which ? first + 31 - static_cast<uint32_t>(__clz(static_cast<int>(which))) : last;
        const uint32_t until = scan<kLanes>(own, Maximum());
        uint32_t before = __shfl_up_sync(kAllLanes, until, 1, kLanes);
        if (lane_of_half_warp() == 0) before = last;
        writer.append([&](auto put) {
            uint32_t at = before;
            for (uint32_t left = which; left; left &= left - 1) {
                const uint32_t k = static_cast<uint32_t>(__ffs(static_cast<int>(left))) - 1;
                const int32_t code = mine[k];
                put(with_sign(elias(shared.words, first + k - at), code));
                put(elias(shared.words, magnitude_of(code)));
                at = first + k;
            }
        });
        return __shfl_sync(kAllLanes, until, kLanes - 1, kLanes);
    }
};

// The codes of units, where blocks are of several.
__global__ void __launch_bounds__(kThreads) quantize_units(EliasFrame frame) {
    const EncodeJob& job = frame.job;
    const Random random(job.seed(), job.spec.rank, job.spec.tensor, job.step());
    const uint64_t units = ceil_div(job.spec.count, kUnit), half_warps = threads_of_grid() / kLanes;
    const uint64_t self = thread_of_grid() / kLanes;
    for (uint64_t first = self / 2 * 2; first < units; first += half_warps) {  // the same for the whole warp
        const uint64_t unit = first + self % 2;
        int16_t* const codes = frame.codes + kUnit * unit + lane_of_half_warp();
        uint32_t nonzeros = 0;
        each_code(job, random, unit, [&](int r, int32_t code) {
            if (unit < units) codes[kLanes * r] = static_cast<int16_t>(code);
            nonzeros += code != 0;
        });
        nonzeros = across<kLanes>(nonzeros, Sum());
        if (unit < units && lane_of_half_warp() == 0) frame.nonzeros[unit] = nonzeros;
    }
}

enum Kind { kDense, kSparse, kSpread };

template <Kind kKind>
__global__ void __launch_bounds__(kThreads) encode_blocks(EliasFrame frame) {
    Shared& shared = *shared_memory<Shared>();
    if (threadIdx.x < kEliasDigits) {
        shared.words.prefix[threadIdx.x] = frame.words.prefix[threadIdx.x];
        shared.words.length[threadIdx.x] = frame.words.length[threadIdx.x];
    }
    __syncthreads();
    Encoder encoder(frame, shared);
    const uint64_t self = thread_of_grid() / kLanes, half_warps = threads_of_grid() / kLanes;
    for (uint64_t first = self / 2 * 2; first < frame.number; first += half_warps) {
        const uint64_t block = first + self % 2;
        const bool here = block < frame.number;
        if (kKind == kDense)
            encoder.encode_dense(block, here);
        else if (kKind == kSparse)
            encoder.encode_sparse(block, here);
        else
            encoder.encode_spread(block, here);
    }
}

}  // namespace

cudaError_t encode_elias_blocks(const EliasFrame& frame, void* stream) {
    const bool spread = frame.block > kEliasBlock, dense = frame.job.spec.codec == QSGD_CODEC_ELIAS_DENSE;
    const uint64_t shared = sizeof(Shared) + 4 * (uint64_t{kHalfWarps} * frame.unit_room);
    const Launch how = {blocks_for(ceil_div(frame.number, kHalfWarps)), kThreads, shared, stream};
    if (!spread) return launch(dense ? encode_blocks<kDense> : encode_blocks<kSparse>, how, frame);
    const uint64_t units = ceil_div(frame.job.spec.count, kUnit);
    const cudaError_t error =
        launch(quantize_units, {blocks_for(ceil_div(units, kHalfWarps)), kThreads, 0, stream}, frame);
    return error ? error : launch(encode_blocks<kSpread>, how, frame);
}

}  // namespace qsgd
