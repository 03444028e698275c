// Blocks of Elias' strings to codes in scratch memory: a block of threads takes a stretch of a frame, a
// thread one of its blocks (docs/wire_format.md, section 6).
#include "cuda/frames.cuh"

namespace qsgd {
namespace {

// The first number of a string of which these are the next bits, the first as the most significant. The
// longest, of kEliasDigits digits, has 29 bits.
struct Number {
    uint32_t value = 1, length = 1;
    bool good;
    __device__ __forceinline__ explicit Number(uint32_t bits) {
        while (static_cast<int32_t>(bits) < 0 && value < kEliasDigits) {
            const uint32_t digits = value + 1;
            value = bits >> (32 - digits);
            bits <<= digits, length += digits;
        }
        good = static_cast<int32_t>(bits) >= 0;
    }
};

// A block's string, read from its beginning. Whatever it holds, nothing is read behind its last word.
class BlockReader {
  public:
    __device__ BlockReader(const uint8_t* frame, uint64_t begin, uint32_t bytes)
        : next_(reinterpret_cast<const uint32_t*>(frame) + begin / 4),
          end_(reinterpret_cast<const uint32_t*>(frame) + ceil_div(begin + bytes, 4)),
          left_(8 * static_cast<int32_t>(bytes)),
          used_(begin % 4 * 8) {
        high_ = word();
        low_ = word();
    }

    // Whether the string was right so far.
    __device__ bool good() const { return !bad_ && left_ >= 0; }
    // Whether it has ended, but for zeros in its last byte.
    __device__ bool ended() const {
        return good() && left_ < 8 && (left_ == 0 || next() >> (32 - left_) == 0);
    }

    // A number from 1 to `largest`.
    __device__ __forceinline__ uint32_t take_number(uint32_t largest) {
        const Number number(next());
        bad_ |= !number.good || number.value > largest;
        skip(number.length);
        return number.value;
    }
    __device__ __forceinline__ bool take_sign() {
        const bool negative = static_cast<int32_t>(next()) < 0;
        skip(1);
        return negative;
    }

  private:
    __device__ __forceinline__ uint32_t next() const { return __funnelshift_l(low_, high_, used_); }
    // At most 32 bits.
    __device__ __forceinline__ void skip(uint32_t bits) {
        left_ -= static_cast<int32_t>(bits);
        used_ += bits;
        if (used_ < 32) return;
        used_ -= 32;
        high_ = low_;
        low_ = word();
    }
    __device__ __forceinline__ uint32_t word() {
        return next_ < end_ ? __byte_perm(__ldg(next_++), 0, 0x0123) : 0;  // its first byte first
    }

    const uint32_t *next_, *const end_;
    int32_t left_;                // bits of the string
    uint32_t high_, low_, used_;  // the words at hand, and how many bits of the first are used
    bool bad_ = false;
};

__device__ __forceinline__ uint16_t code_of(bool negative, uint32_t magnitude) {
    return static_cast<uint16_t>(negative ? 0 - magnitude : magnitude);
}

// Four codes at a time; those past the end are 0. Returns whether the block is as it must be.
__device__ __forceinline__ bool decode_dense(BlockReader& reader, uint32_t elements, uint32_t levels,
                                             int16_t* codes) {
#pragma unroll 1
    for (uint32_t i = 0; i < kEliasBlock; i += 4) {
        uint64_t four = 0;
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            if (i + k >= elements) continue;
            const uint32_t magnitude = reader.take_number(levels + 1) - 1;
            if (magnitude) four |= static_cast<uint64_t>(code_of(reader.take_sign(), magnitude)) << 16 * k;
        }
        *reinterpret_cast<uint64_t*>(codes + i) = four;
    }
    return reader.ended();
}

// The same where all codes are 0 before.
__device__ __forceinline__ bool decode_sparse(BlockReader& reader, uint32_t elements, uint32_t levels,
                                              int16_t* codes) {
    uint32_t at = 0, nonzeros = reader.take_number(elements + 1) - 1;
    for (; nonzeros > 0 && reader.good(); --nonzeros) {
        at += reader.take_number(elements - at);
        const bool negative = reader.take_sign();
        const uint32_t magnitude = reader.take_number(levels);
        if (reader.good()) codes[at - 1] = static_cast<int16_t>(code_of(negative, magnitude));
    }
    return reader.ended();
}

// By all threads of a block.
__device__ void decode_stretch(const SumJob& job, uint32_t frame, uint64_t stretch) {
    const FrameView& view = job.views[frame];
    const EliasBlocks blocks = job.coded.views[frame].elias;
    const uint64_t count = view.header.count,
                   first = stretch * kStretch + threadIdx.x * uint64_t{blocks.size};
    int16_t* const codes = job.coded.unit_codes(frame, stretch * (kStretch / kUnit) - job.first_unit);
    const bool sparse = view.header.codec == QSGD_CODEC_ELIAS_SPARSE;
    if (sparse)
        for (uint64_t k = threadIdx.x; k < units_of_stretch(count, stretch) * kUnit / 4; k += kThreads)
            reinterpret_cast<uint64_t*>(codes)[k] = 0;
    const uint32_t bytes = blocks.length(count, stretch, threadIdx.x);
    uint64_t all;  // from here on the codes are 0
    const uint64_t begin =
        job.coded.offsets_of(frame)[stretch] + block_scan(bytes, shared_memory<uint64_t>(), all);
    if (threadIdx.x >= blocks.of_stretch(count, stretch)) return;
    const auto elements = static_cast<uint32_t>(count - first < blocks.size ? count - first : blocks.size);
    BlockReader reader(view.base, begin, bytes);
    int16_t* const own = codes + first % kStretch;
    const bool good = sparse ? decode_sparse(reader, elements, view.header.levels, own)
                             : decode_dense(reader, elements, view.header.levels, own);
    if (!good) job.fail(kStreams, frame, QSGD_BAD_PAYLOAD);
}

__global__ void __launch_bounds__(kThreads) decode_blocks(SumJob job) {
    if (!job.opened()) return;
    const uint64_t first = job.first_unit / (kStretch / kUnit), stretches = stretches_of(kUnit * job.units);
    for (uint64_t item = blockIdx.x; item < stretches * job.frame_count; item += gridDim.x) {
        const auto frame = static_cast<uint32_t>(item / stretches);
        if (is_elias(job.views[frame].header.codec) && job.coded.views[frame].open)
            decode_stretch(job, frame, first + item % stretches);
    }
}

}  // namespace

cudaError_t decode_elias_blocks(const SumJob& job, void* stream) {
    const uint32_t blocks = blocks_for(stretches_of(kUnit * job.units) * job.frame_count);
    return launch(decode_blocks, {blocks, kThreads, 8 * kThreads / kWarp, stream}, job);
}

}  // namespace qsgd
