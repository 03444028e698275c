// Streams of rans payloads to codes in scratch memory: half a warp takes a stream of a frame, a thread one
// lane's state (docs/wire_format.md, section 6).
#include "cuda/elements.cuh"
#include "cuda/frames.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kStreamsOfBlock = kThreads / kLanes;

// What is looked up of a frame.
struct Shared {
    uint8_t symbols[kRansMaxClasses * kRansOne];         // of slots
    uint32_t intervals[kRansMaxClasses * kRansSymbols];  // frequency, and from bit 16 on the first slot
    uint32_t shifts[kRansMaxClasses];
    uint32_t shifted;  // whether a class has low bits

    // By all threads of a block.
    __device__ void load(const RansView& view) {
        __syncthreads();  // whoever used it before
        if (threadIdx.x == 0) shifted = 0;
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < view.classes * kRansSymbols; k += kThreads) {
            const RansTable& table = view.tables[k / kRansSymbols];
            const uint32_t symbol = k % kRansSymbols, f = rans_frequency(table, symbol);
            uint32_t start = 0;
            for (uint32_t before = 0; before < symbol; ++before) start += rans_frequency(table, before);
            intervals[k] = start << 16 | f;
            uint8_t* const slots = symbols + k / kRansSymbols * kRansOne + start;
            for (uint32_t slot = 0; slot < f; ++slot) slots[slot] = static_cast<uint8_t>(symbol);
            if (symbol > 0) continue;
            shifts[k / kRansSymbols] = table.shift;
            if (table.shift) atomicOr(&shifted, 1u);
        }
        __syncthreads();
    }
};

// A lane's state and its half-warp's stream, read backwards. All lanes of a warp call its functions together;
// those that are not `here` take no part.
class StreamReader {
  public:
    // Of a stream's bytes from `begin` to `end`.
    __device__ StreamReader(const uint8_t* begin, const uint8_t* end, bool here) : begin_(begin) {
        if (!here) return;
        const uint8_t* const states = end - kRansStateBytes;
        left_ = static_cast<uint64_t>(states - begin) / 2;
        memcpy(&state_, states + 4 * lane_of_half_warp(), sizeof state_);
        bad_ = state_ < kRansLow || state_ >> 31;
    }

    // Whether the stream is used up as its encoder left it, and was before.
    __device__ bool good() const { return !bad_ && left_ == 0 && state_ == kRansLow; }

    __device__ __forceinline__ int32_t pop_code(const Shared& shared, uint32_t c, bool here) {
        const uint32_t slot = state_ & (kRansOne - 1), symbol = shared.symbols[c * kRansOne + slot];
        const uint32_t interval = shared.intervals[c * kRansSymbols + symbol];
        if (here) state_ = (interval & 0xFFFF) * (state_ >> kRansBits) + slot - (interval >> 16);
        fill(here);
        const int32_t number = static_cast<int32_t>(symbol << 27) >> 27;
        const bool escaped = here && symbol == kRansEscape;
        int32_t code = number;
        if (shared.shifted) {
            const uint32_t shift = shared.shifts[c];
            const uint32_t low = pop(here && !escaped && shift, shift);
            code = number * (1 << shift) + static_cast<int32_t>(low) - (1 << shift >> 1);
        }
        if (__any_sync(kAllLanes, escaped)) {
            const uint32_t low = pop(escaped, 8), high = pop(escaped, 8);
            if (escaped) code = static_cast<int16_t>(high << 8 | low);
        }
        return code;
    }

  private:
    __device__ __forceinline__ uint32_t pop(bool here, uint32_t bits) {
        const uint32_t value = here ? state_ & ((1u << bits) - 1) : 0;
        if (here) state_ >>= bits;
        fill(here);
        return value;
    }

    // Refills states that are too small, the last lane's first.
    __device__ __forceinline__ void fill(bool here) {
        const bool takes = here && state_ < kRansLow;
        const uint32_t lanes = half_warp_ballot(takes), taken = static_cast<uint32_t>(__popc(lanes));
        if (takes) {
            const auto earlier = static_cast<uint32_t>(__popc(lanes >> lane_of_half_warp() >> 1));
            state_ = state_ << 16 | (earlier < left_ ? word(left_ - 1 - earlier) : 0);
        }
        bad_ |= taken > left_;
        left_ = taken > left_ ? 0 : left_ - taken;
    }

    // Streams begin at any byte.
    __device__ __forceinline__ uint32_t word(uint64_t k) const {
        return __ldg(begin_ + 2 * k) | static_cast<uint32_t>(__ldg(begin_ + 2 * k + 1)) << 8;
    }

    const uint8_t* begin_;
    uint64_t left_ = 0;  // words
    uint32_t state_ = kRansLow;
    bool bad_ = false;
};

struct Decoder {
    const SumJob& job;
    const Shared& shared;
    uint32_t frame;

    // The stream with this number, if it is there: both half-warps of a warp do this together.
    __device__ __forceinline__ void decode(uint64_t number, bool here) {
        const uint64_t stretch = here ? number / kRansStreams : 0, k = number % kRansStreams;
        const uint64_t all = units_of_stretch(job.expected.count, stretch), streams = rans_streams(all);
        const uint64_t* const offsets = job.coded.offsets_of(frame) + (here ? number : 0);
        const uint8_t* const base = job.views[frame].base;
        StreamReader reader(base + offsets[0], base + offsets[1], here);
        for (uint64_t left = here ? ceil_div(all - k, streams) : 0; __any_sync(kAllLanes, left > 0);) {
            const bool more = left > 0;
            if (more) --left;
            decode_unit(stretch * (kStretch / kUnit) + k + left * streams, more, reader);
        }
        if (here && !reader.good()) job.fail(kStreams, frame, QSGD_BAD_PAYLOAD);
    }

  private:
    __device__ __forceinline__ uint32_t unit_byte(const RansView& view, uint64_t unit) const {
        return view.mode == kOneClass ? 1 : __ldg(view.units + unit / 2) >> unit % 2 * 4 & 15;
    }

    __device__ __forceinline__ void decode_unit(uint64_t unit, bool here, StreamReader& reader) {
        const RansView& view = job.coded.views[frame].rans;
        const uint32_t byte = here ? unit_byte(view, unit) : 0;
        int16_t* const codes = here ? job.coded.codes_of(frame, unit - job.first_unit) : nullptr;
        if (!__any_sync(kAllLanes, byte != 0)) {
            for (int r = 0; here && r < kRows; ++r) codes[kLanes * r] = 0;
            return;
        }
        ColumnWalk walk(unit, view.columns, kRows - 1);
#pragma unroll 2
        for (int r = kRows - 1; r >= 0; --r) {
            const uint32_t column = view.columns ? __ldg(view.column_bytes + walk.column) : 7;
            const int32_t code = reader.pop_code(shared, rans_class(byte, column, view.classes), byte != 0);
            if (here) codes[kLanes * r] = static_cast<int16_t>(byte ? code : 0);
            walk.previous_row();
        }
    }
};

__global__ void __launch_bounds__(kThreads, 1) decode_streams(SumJob job) {
    Shared& shared = *shared_memory<Shared>();
    if (!job.opened()) return;
    const uint64_t first = job.first_unit / (kStretch / kUnit) * kRansStreams;
    const uint64_t later = job.coded.streams - first,
                   pass = job.coded.units / (kStretch / kUnit) * kRansStreams;
    const uint64_t streams = later < pass ? later : pass, groups = ceil_div(streams, kStreamsOfBlock);
    uint32_t loaded = job.frame_count;
    for (uint64_t item = blockIdx.x; item < groups * job.frame_count; item += gridDim.x) {
        const auto frame = static_cast<uint32_t>(item / groups);
        if (job.views[frame].header.codec != QSGD_CODEC_RANS || !job.coded.views[frame].open) continue;
        if (frame != loaded) shared.load(job.coded.views[loaded = frame].rans);
        const uint64_t stream = item % groups * kStreamsOfBlock + half_warp_of_block();
        Decoder{job, shared, frame}.decode(first + stream, stream < streams);
    }
}

}  // namespace

cudaError_t decode_rans_streams(const SumJob& job, void* stream) {
    const uint64_t groups = ceil_div(kRansStreams * job.units, kStreamsOfBlock * (kStretch / kUnit));
    const uint32_t blocks = blocks_for(groups * job.frame_count);
    return launch(decode_streams, {blocks, kThreads, sizeof(Shared), stream}, job);
}

}  // namespace qsgd
