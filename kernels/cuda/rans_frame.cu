// A rans frame in two steps: its parts in scratch memory and its length; then the frame.
#include "cuda/encode_variable.cuh"
#include "cuda/rans.cuh"
#include "cuda/scan.cuh"

namespace qsgd {
namespace {

// Where in scratch memory what lies.
class Scratch : public Places {
  public:
    explicit Scratch(const qsgd_spec& spec)
        : units_(ceil_div(spec.count, kUnit)),
          sampled_(rans_sample_units(units_)),
          columns_(rans_columns_known(spec, sampled_) ? spec.columns : 0),
          streams_(rans_all_streams(spec.count)),
          at_(layout_of(spec)),
          state_(take(sizeof(RansState))),
          column_sums_(take(8 * columns_)),
          zeros_end_(bytes),
          terms_(take(8 * kMostBlocks)),
          leaves_(take(8 * tree_leaves(spec))),
          nodes_(take(8 * tree_nodes(spec))),
          codes_(take(2 * kUnit * sampled_)),
          sums_(take(4 * sampled_)),
          column_bytes_(take(columns_)),
          expected_(take(8 * (columns_ + 1))),
          offsets_(take(8 * (streams_ + 1))),
          front_(take(at_.payload)),
          head_(take(most_rans_head_bytes(spec.count, columns_) + 4 * streams_)),
          words_(take(words_bytes(spec.count))) {
        take(8);  // words are read whole
    }

    RansFrame frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw, void* scratch) const {
        auto* const base = static_cast<uint8_t*>(scratch);
        RansFrame f = {};
        f.job = {spec, at_, gradient, base + front_, draw, reinterpret_cast<uint64_t*>(base + terms_), 0};
        f.units = units_, f.sampled = sampled_, f.streams = streams_;
        f.modes = columns_ ? kRansModes : kRansModes - 1;
        f.state = reinterpret_cast<RansState*>(base + state_);
        f.codes = reinterpret_cast<int16_t*>(base + codes_);
        f.sums = reinterpret_cast<uint32_t*>(base + sums_);
        f.column_sums = reinterpret_cast<uint32_t*>(base + column_sums_);
        f.column_counts = f.column_sums + columns_;
        f.column_bytes = base + column_bytes_;
        f.expected = reinterpret_cast<uint64_t*>(base + expected_);
        f.offsets = reinterpret_cast<uint64_t*>(base + offsets_);
        f.words = base + words_;
        return f;
    }

    TreeScratch tree(void* scratch) const {
        auto* const base = static_cast<uint8_t*>(scratch);
        return {reinterpret_cast<double*>(base + leaves_), reinterpret_cast<double*>(base + nodes_)};
    }

    // What is added to, or set by bits.
    cudaError_t clear(void* scratch, void* stream) const {
        auto* const base = static_cast<uint8_t*>(scratch);
        const auto on = static_cast<cudaStream_t>(stream);
        const cudaError_t error = cudaMemsetAsync(base, 0, zeros_end_, on);
        const uint64_t scales_end = front_ + QSGD_HEADER_BYTES + 4 * at_.scales;
        return error ? error : cudaMemsetAsync(base + scales_end, 0, words_ - scales_end, on);
    }

  private:
    static uint64_t words_bytes(uint64_t count) {
        if (count == 0) return 0;
        const uint64_t last = stretches_of(count) - 1, units = units_of_stretch(count, last);
        return kRansStreams * last * RansFrame::room(kStretch / kUnit) +
               rans_streams(units) * RansFrame::room(units);
    }

    const uint64_t units_, sampled_, columns_, streams_;
    const Layout at_;
    const uint64_t state_, column_sums_, zeros_end_, terms_, leaves_, nodes_, codes_, sums_, column_bytes_,
        expected_, offsets_, front_, head_, words_;
};

// Where the streams lie in the frame, their lengths, and the header but for its checksum: by one block.
__global__ void __launch_bounds__(kMeasuring)
    measure(RansFrame frame, const double* squared_norm, uint64_t* frame_bytes) {
    const EncodeJob& job = frame.job;
    const Share mine(frame.streams);
    uint64_t bytes = 0, all;
    for (uint64_t s = mine.begin; s < mine.end; ++s) bytes += frame.offsets[s];
    uint64_t at = block_scan(bytes, shared_memory<uint64_t>(), all);
    const uint64_t first = frame.streams ? frame.state->streams : job.at.payload;
    at += first;
    for (uint64_t s = mine.begin; s < mine.end; ++s) {
        const uint64_t length = frame.offsets[s];
        const auto words = static_cast<uint32_t>((length - kRansStateBytes) / 2);
        uint8_t* const put = job.frame + frame.state->lengths + 4 * s;
        for (int k = 0; k < 4; ++k) put[k] = static_cast<uint8_t>(words >> 8 * k);
        frame.offsets[s] = at;
        at += length;
    }
    if (threadIdx.x != 0) return;
    Layout there = job.at;
    there.coded_bytes = first + all, there.frame_bytes = roundup16(there.coded_bytes);
    frame.offsets[frame.streams] = frame.state->coded_bytes = there.coded_bytes;
    *frame_bytes = there.frame_bytes;
    put_header(job.frame, job.header(there, squared_norm));
}

// Parts of the frame: the front, each stream, and zeros.
struct Parts {
    const RansFrame& frame;
    const uint64_t bytes;

    __device__ uint64_t begin(uint64_t part) const { return part ? frame.offsets[part - 1] : 0; }
    __device__ uint64_t end(uint64_t part) const { return part > frame.streams ? bytes : begin(part + 1); }
    __device__ const uint64_t* memory(uint64_t part) const {
        return reinterpret_cast<const uint64_t*>(part ? frame.stream(part - 1) : frame.job.frame);
    }

    // The eight bytes from number `at` of a part on, of which `size` are left.
    __device__ __forceinline__ uint64_t word(uint64_t part, uint64_t at, uint64_t size) const {
        if (part > frame.streams) return 0;
        const uint64_t* const words = memory(part) + at / 8;
        const uint32_t shift = at % 8 * 8;
        uint64_t word = shift ? words[0] >> shift | words[1] << (64 - shift) : words[0];
        if (size >= 8) return word;
        word &= (1ull << 8 * size) - 1;
        return part == frame.streams ? word : word | *memory(part + 1) << 8 * size;
    }
};

// Puts the parts together; a block takes one at a time.
__global__ void __launch_bounds__(kThreads) put_together(RansFrame frame, uint64_t* out, uint64_t bytes) {
    const Parts parts = {frame, bytes};
    uint64_t sum = 0;
    for (uint64_t part = blockIdx.x; part < frame.streams + 2; part += gridDim.x) {
        const uint64_t begin = parts.begin(part), end = parts.end(part);
        const uint64_t last = (end < bytes ? end + 7 : bytes) / 8;
        for (uint64_t k = ceil_div(begin, 8) + threadIdx.x; k < last; k += kThreads) {
            if (k == kChecksumWord) continue;
            const uint64_t at = 8 * k - begin;
            sum += put_word(out, k, k == kLengthWord ? bytes : parts.word(part, at, end - begin - at));
        }
    }
    const uint64_t total = block_sum(sum, shared_memory<uint64_t>());
    if (threadIdx.x == 0) frame.job.terms[blockIdx.x] = total;
}

cudaError_t begin_frame(const RansFrame& frame, const TreeScratch& tree, uint64_t* frame_bytes,
                        void* stream) {
    const double* squared_norm = nullptr;
    cudaError_t error = cudaSuccess;
    if (frame.streams) {
        error = find_scales(frame.job, tree, stream);
        if (!error) error = choose_rans_model(frame, stream);
        if (!error) error = encode_rans_streams(frame, stream);
        const bool norm = frame.job.spec.flags & QSGD_FLAG_SQUARED_NORM;
        if (!error && norm) error = find_squared_norm(frame.job, tree, &squared_norm, stream);
    }
    return error ? error
                 : launch(measure, {1, kMeasuring, 8 * kMeasuring / kWarp, stream}, frame, squared_norm,
                          frame_bytes);
}

cudaError_t end_frame(const RansFrame& frame, uint64_t* out, uint64_t bytes, void* stream) {
    constexpr uint64_t kShared = 8 * kThreads / kWarp;
    const uint32_t blocks = blocks_for(frame.streams + 2);
    const cudaError_t error = launch(put_together, {blocks, kThreads, kShared, stream}, frame, out, bytes);
    return error ? error : seal_frame(frame.job.terms, blocks, out, stream);
}

}  // namespace

uint64_t rans_scratch_bytes(const qsgd_spec& spec) { return Scratch(spec).bytes; }

cudaError_t begin_rans_frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw,
                             void* scratch, uint64_t* frame_bytes, void* stream) {
    const Scratch places(spec);
    const cudaError_t error = places.clear(scratch, stream);
    if (error) return error;
    return begin_frame(places.frame(spec, gradient, draw, scratch), places.tree(scratch), frame_bytes,
                       stream);
}

cudaError_t end_rans_frame(const qsgd_spec& spec, void* scratch, uint64_t* out, uint64_t bytes,
                           void* stream) {
    return end_frame(Scratch(spec).frame(spec, nullptr, nullptr, scratch), out, bytes, stream);
}

}  // namespace qsgd
