// Streams of a rans payload (docs/wire_format.md, section 6): half a warp takes a stream, a thread one lane's
// state.
#include "cuda/quantize.cuh"
#include "cuda/rans.cuh"

namespace qsgd {
namespace {

struct Shared {
    RansEncoder encoder;
    uint64_t shifted;                                  // whether a class has low bits
    int16_t codes[kThreads / kLanes][kUnit + kLanes];  // so that a warp's half-warps meet other banks
};

// A lane's state and its half-warp's stream. All lanes of a warp call its functions together; those that are
// not `here` take no part.
class StreamWriter {
  public:
    uint32_t state = kRansLow;

    __device__ explicit StreamWriter(uint8_t* begin) : out_(reinterpret_cast<uint16_t*>(begin)) {}

    __device__ __forceinline__ void push(bool here, uint32_t value, uint32_t bits) {
        make_room(here, 1u << (31 - bits));
        if (here) state = state << bits | value;
    }

    __device__ __forceinline__ void push_symbol(bool here, uint32_t interval, float reciprocal) {
        const uint32_t f = interval & 0xFFFF;
        make_room(here, f << (31 - kRansBits));
        if (!here) return;
        uint32_t quotient = static_cast<uint32_t>(
            static_cast<int32_t>(static_cast<float>(static_cast<int32_t>(state)) * reciprocal));
        uint32_t rest = state - quotient * f;
        if (rest >= f) ++quotient, rest -= f;
        state = (quotient << kRansBits) + rest + (interval >> 16);
    }

    // Appends the states; returns where the stream ends.
    __device__ uint8_t* finish(bool here) {
        uint16_t* const at = out_ + 2 * lane_of_half_warp();
        if (here) at[0] = static_cast<uint16_t>(state), at[1] = static_cast<uint16_t>(state >> 16);
        return reinterpret_cast<uint8_t*>(out_) + kRansStateBytes;
    }

  private:
    __device__ __forceinline__ void make_room(bool here, uint32_t limit) {
        const bool gives = here && state >= limit;
        const uint32_t lanes = half_warp_ballot(gives);
        if (gives) {
            out_[__popc(lanes & ((1u << lane_of_half_warp()) - 1))] = static_cast<uint16_t>(state);
            state >>= 16;
        }
        out_ += __popc(lanes);
    }

    uint16_t* out_;
};

__device__ __forceinline__ void push_code(const Shared& shared, uint32_t c, int32_t code, bool here,
                                          StreamWriter& writer) {
    const RansEncoder& e = shared.encoder;
    const uint32_t shift = e.shifts[c];
    const int32_t moved = code + (1 << shift >> 1), number = moved >> shift;
    uint32_t at = c * kRansSymbols + (static_cast<uint32_t>(number) & (kRansSymbols - 1));
    const bool escaped = here && (number < -kRansTop || number > kRansTop || (e.intervals[at] & 0xFFFF) == 0);
    if (__any_sync(kAllLanes, escaped)) {
        writer.push(escaped, static_cast<uint32_t>(code) >> 8 & 255, 8);
        writer.push(escaped, static_cast<uint32_t>(code) & 255, 8);
        if (escaped) at = c * kRansSymbols + kRansEscape;
    }
    if (shared.shifted)
        writer.push(here && !escaped && shift, static_cast<uint32_t>(moved) & ((1u << shift) - 1), shift);
    writer.push_symbol(here, e.intervals[at], e.reciprocals[at]);
}

struct Encoder {
    const RansFrame& frame;
    Shared& shared;
    const Random random;

    // The stream with this number, if it is there: both half-warps of a warp do this together.
    __device__ __forceinline__ void encode(uint64_t number, bool here) {
        const uint64_t stretch = here ? number / kRansStreams : 0, units = frame.units_of(stretch);
        const uint64_t streams = rans_streams(units), base = stretch * (kStretch / kUnit);
        uint8_t* const begin = frame.stream(here ? number : 0);
        StreamWriter writer(begin);
        for (uint64_t u = number % kRansStreams;; u += streams) {
            const bool more = here && u < units;
            if (!__any_sync(kAllLanes, more)) break;
            encode_unit(more ? base + u : frame.units, more, writer);
        }
        const uint8_t* const end = writer.finish(here);
        if (here && lane_of_half_warp() == 0) frame.offsets[number] = static_cast<uint64_t>(end - begin);
    }

  private:
    __device__ __forceinline__ void encode_unit(uint64_t unit, bool here, StreamWriter& writer) {
        int16_t* const codes = shared.codes[half_warp_of_block()] + lane_of_half_warp();
        const RansChoice& choice = shared.encoder.choice;
        uint32_t sum = 0;
        each_code(frame.job, random, unit, [&](int r, int32_t code) {
            codes[kLanes * r] = static_cast<int16_t>(code);
            sum += static_cast<uint32_t>(code < 0 ? -code : code);
        });
        sum = across<kLanes>(sum, Sum());
        const uint32_t byte = here ? choose_unit_byte(choice, sum, unit, frame.job.spec.count) : 0;
        if (choice.mode != kOneClass && byte && lane_of_half_warp() == 0) put_unit(unit, byte);
        if (!__any_sync(kAllLanes, byte != 0)) return;
        ColumnWalk walk(unit, choice.columns);
#pragma unroll 2
        for (int r = 0; r < kRows; ++r) {
            const uint32_t column = choice.columns ? __ldg(choice.column_of + walk.column) : 7;
            push_code(shared, rans_class(byte, column, choice.classes), codes[kLanes * r], byte != 0, writer);
            walk.next_row();
        }
    }

    // Four bits of the front, which were zeros.
    __device__ __forceinline__ void put_unit(uint64_t unit, uint32_t byte) {
        const uint64_t at = frame.state->units + unit / 2;
        auto* const word = reinterpret_cast<uint32_t*>(frame.job.frame + at / 4 * 4);
        atomicOr(word, byte << (at % 4 * 8 + unit % 2 * 4));
    }
};

__global__ void __launch_bounds__(kThreads) encode_streams(RansFrame frame) {
    Shared& shared = *shared_memory<Shared>();
    static_assert(sizeof(RansEncoder) % 8 == 0, "copied by words");
    const auto* const from = reinterpret_cast<const uint64_t*>(&frame.state->encoder);
    auto* const to = reinterpret_cast<uint64_t*>(&shared.encoder);
    for (uint32_t k = threadIdx.x; k < sizeof(RansEncoder) / 8; k += kThreads) to[k] = from[k];
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.shifted = 0;
        for (uint32_t c = 0; c < shared.encoder.choice.classes; ++c)
            shared.shifted |= shared.encoder.shifts[c];
    }
    __syncthreads();
    const EncodeJob& job = frame.job;
    Encoder encoder = {frame, shared, Random(job.seed(), job.spec.rank, job.spec.tensor, job.step())};
    const uint64_t self = thread_of_grid() / kLanes, half_warps = threads_of_grid() / kLanes;
    for (uint64_t first = self / 2 * 2; first < frame.streams; first += half_warps) {
        const uint64_t number = first + self % 2;
        encoder.encode(number, number < frame.streams);
    }
}

}  // namespace

cudaError_t encode_rans_streams(const RansFrame& frame, void* stream) {
    const uint32_t blocks = blocks_for(ceil_div(frame.streams, kThreads / kLanes));
    return launch(encode_streams, {blocks, kThreads, sizeof(Shared), stream}, frame);
}

}  // namespace qsgd
