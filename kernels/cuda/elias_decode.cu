// Blocks of Elias' strings to codes in scratch memory: a block of threads takes a stretch of a frame, a
// thread one of its blocks (docs/wire_format.md, section 6).
#include "cuda/frames.cuh"

namespace qsgd {
namespace {

struct Shared {
    uint64_t parts[kThreads / kWarp];
    NumberTable numbers;
};

// A block's string, read from its beginning. Whatever it holds, nothing is read behind its last word.
class BlockReader {
  public:
    __device__ BlockReader(const NumberTable& numbers, const uint8_t* frame, uint64_t begin, uint32_t bytes)
        : numbers_(numbers),
          words_(reinterpret_cast<const uint32_t*>(frame) + begin / 4),
          end_((static_cast<uint32_t>(begin % 4) + bytes + 3) / 4),
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

    // The next bits, the first as the most significant: more than a number and a sign have.
    __device__ __forceinline__ uint32_t next() const { return __funnelshift_l(low_, high_, used_); }
    // The number there, from 1 to `largest`.
    __device__ __forceinline__ Number number(uint32_t bits, uint32_t largest) {
        Number found = first_number(numbers_.shapes[bits >> (32 - NumberTable::kBits)], bits);
        if (!found.complete) found = longer(found, bits);
        bad_ |= !found.complete | (found.value > largest);
        return found;
    }
    // At most 32 bits.
    __device__ __forceinline__ void skip(uint32_t bits) {
        left_ -= static_cast<int32_t>(bits);
        used_ += bits;
        if (used_ < 32) return;
        used_ -= 32;
        high_ = low_;
        low_ = word();
    }
    __device__ __forceinline__ uint32_t take(uint32_t largest) {
        const Number found = number(next(), largest);
        skip(found.length);
        return found.value;
    }

  private:
    // A number of more than 16 digits: what was found is one less than these.
    static __device__ __forceinline__ Number longer(const Number& found, uint32_t bits) {
        const uint32_t digits = found.value + 1, before = found.length - 1;
        if (digits > kEliasDigits) return {found.value, found.length, false};
        const uint32_t value = bits << before >> (32 - digits);
        return {value, found.length + digits, static_cast<int32_t>(bits << before << digits) >= 0};
    }
    __device__ __forceinline__ uint32_t word() {
        return at_ < end_ ? __byte_perm(__ldg(words_ + at_++), 0, 0x0123) : 0;  // its first byte first
    }

    const NumberTable& numbers_;
    const uint32_t* const words_;
    const uint32_t end_;
    uint32_t at_ = 0, bad_ = 0;
    int32_t left_;                // bits of the string
    uint32_t high_, low_, used_;  // the words at hand, and how many bits of the first are used
};

__device__ __forceinline__ bool is_one(uint32_t bits, uint32_t k) {
    return static_cast<int32_t>(bits << k) < 0;
}
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
            const uint32_t bits = reader.next();
            const Number number = reader.number(bits, levels + 1);
            const bool live = number.value > 1, negative = live && is_one(bits, number.length);
            reader.skip(number.length + live);
            four |= static_cast<uint64_t>(code_of(negative, number.value - 1)) << 16 * k;
        }
        *reinterpret_cast<uint64_t*>(codes + i) = four;
    }
    return reader.ended();
}

// The same where all codes are 0 before.
__device__ __forceinline__ bool decode_sparse(BlockReader& reader, uint32_t elements, uint32_t levels,
                                              int16_t* codes) {
    uint32_t at = 0, nonzeros = reader.take(elements + 1) - 1;
    for (; nonzeros > 0 && reader.good(); --nonzeros) {
        const uint32_t bits = reader.next();
        const Number gap = reader.number(bits, elements - at);
        reader.skip(gap.length + 1);
        at += gap.value;
        const uint16_t code = code_of(is_one(bits, gap.length), reader.take(levels));
        if (reader.good()) codes[at - 1] = static_cast<int16_t>(code);
    }
    return reader.ended();
}

// By all threads of a block.
__device__ void decode_stretch(const SumJob& job, uint32_t frame, uint64_t stretch, Shared& shared) {
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
    const uint64_t begin = job.coded.offsets_of(frame)[stretch] + block_scan(bytes, shared.parts, all);
    if (threadIdx.x >= blocks.of_stretch(count, stretch)) return;
    const auto elements = static_cast<uint32_t>(count - first < blocks.size ? count - first : blocks.size);
    BlockReader reader(shared.numbers, view.base, begin, bytes);
    int16_t* const own = codes + first % kStretch;
    const bool good = sparse ? decode_sparse(reader, elements, view.header.levels, own)
                             : decode_dense(reader, elements, view.header.levels, own);
    if (!good) job.fail(kStreams, frame, QSGD_BAD_PAYLOAD);
}

__global__ void __launch_bounds__(kThreads) decode_blocks(SumJob job, NumberTable numbers) {
    Shared& shared = *shared_memory<Shared>();
    if (!job.opened()) return;
    if (threadIdx.x < 1 << NumberTable::kBits)
        shared.numbers.shapes[threadIdx.x] = numbers.shapes[threadIdx.x];
    const uint64_t first = job.first_unit / (kStretch / kUnit), stretches = stretches_of(kUnit * job.units);
    for (uint64_t item = blockIdx.x; item < stretches * job.frame_count; item += gridDim.x) {
        const auto frame = static_cast<uint32_t>(item / stretches);
        if (is_elias(job.views[frame].header.codec) && job.coded.views[frame].open)
            decode_stretch(job, frame, first + item % stretches, shared);
    }
}

}  // namespace

cudaError_t decode_elias_blocks(const SumJob& job, void* stream) {
    const uint32_t blocks = blocks_for(stretches_of(kUnit * job.units) * job.frame_count);
    return launch(decode_blocks, {blocks, kThreads, sizeof(Shared), stream}, job, NumberTable());
}

}  // namespace qsgd
