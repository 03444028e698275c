// An Elias frame in two steps: its parts in scratch memory and its length; then the frame.
#include "cuda/elias_frame.cuh"
#include "cuda/encode_variable.cuh"

namespace qsgd {
namespace {

// Words of 32 bits for what a unit adds to a block's string: at most so many bits, a number of nonzeros or a
// gap that is longer than the unit, and what the words had before.
uint32_t unit_room(const qsgd_spec& spec) {
    const uint64_t bits = 8 * elias_block_bound(spec.codec == QSGD_CODEC_ELIAS_SPARSE, spec.levels, kUnit);
    return static_cast<uint32_t>((bits + elias_length(kLargestEliasBlock) + 31) / 32 + 1);
}

// Where in scratch memory what lies.
class Scratch : public Places {
  public:
    explicit Scratch(const qsgd_spec& spec)
        : at_(layout_of(spec)),
          block_(elias_block(spec)),
          number_(ceil_div(spec.count, block_)),
          units_(block_ > kEliasBlock ? ceil_div(spec.count, kUnit) : 0),
          room_(ceil_div(elias_block_bound(spec.codec == QSGD_CODEC_ELIAS_SPARSE, spec.levels, block_), 4)),
          terms_(take(8 * kMostBlocks)),
          leaves_(take(8 * tree_leaves(spec))),
          nodes_(take(8 * tree_nodes(spec))),
          offsets_(take(8 * stretches_of(spec.count))),
          codes_(take(2 * kUnit * units_)),
          nonzeros_(take(4 * units_)),
          front_(take(front_bytes())),
          strings_(take(4 * room_ * number_)) {}

    EliasFrame frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw,
                     void* scratch) const {
        auto* const base = static_cast<uint8_t*>(scratch);
        EliasFrame f = {};
        f.job = {spec, at_, gradient, base + front_, draw, reinterpret_cast<uint64_t*>(base + terms_), 0};
        f.front = front_bytes(), f.number = number_, f.block = block_;
        f.room = static_cast<uint32_t>(room_), f.unit_room = unit_room(spec);
        f.lengths = reinterpret_cast<uint16_t*>(f.job.frame + at_.payload + kEliasHead);
        f.strings = reinterpret_cast<uint32_t*>(base + strings_);
        f.offsets = reinterpret_cast<uint64_t*>(base + offsets_);
        f.codes = reinterpret_cast<int16_t*>(base + codes_);
        f.nonzeros = reinterpret_cast<uint32_t*>(base + nonzeros_);
        f.words = kEliasWords;
        return f;
    }

    TreeScratch tree(void* scratch) const {
        auto* const base = static_cast<uint8_t*>(scratch);
        return {reinterpret_cast<double*>(base + leaves_), reinterpret_cast<double*>(base + nodes_)};
    }

  private:
    uint64_t front_bytes() const { return at_.payload + (number_ ? kEliasHead + 2 * number_ : 0); }

    const Layout at_;
    const uint32_t block_;
    const uint64_t number_, units_, room_;
    const uint64_t terms_, leaves_, nodes_, offsets_, codes_, nonzeros_, front_, strings_;
};

// Where the strings lie in the frame, and the front but for scales and lengths: by one block.
__global__ void __launch_bounds__(kMeasuring)
    measure(EliasFrame frame, const double* squared_norm, uint64_t* frame_bytes) {
    const EncodeJob& job = frame.job;
    Layout there = job.at;
    there.coded_bytes =
        frame.blocks().place_stretches(job.spec.count, frame.front, frame.offsets, shared_memory<uint64_t>());
    if (threadIdx.x != 0) return;
    there.frame_bytes = roundup16(there.coded_bytes);
    *frame_bytes = there.frame_bytes;
    put_header(job.frame, job.header(there, squared_norm));
    for (uint64_t k = job.scale_words_end(); k < job.at.payload / 8; ++k) *word_of(job.frame, k) = 0;
    if (job.spec.count) *word_of(job.frame, job.at.payload / 8) = frame.block;
}

struct Strings {
    uint64_t parts[kThreads / kWarp];
    uint64_t begin[kThreads + 1];  // of a stretch's blocks in the frame, and their end
};

// Puts a stretch's strings into the frame, `end` bytes of which there are.
__device__ __forceinline__ void put_stretch(const EliasFrame& frame, uint64_t stretch, uint8_t* out,
                                            uint64_t end, Strings& strings) {
    const EliasBlocks blocks = frame.blocks();
    const uint32_t length = blocks.length(frame.job.spec.count, stretch, threadIdx.x);
    uint64_t all;
    const uint64_t before = block_scan(length, strings.parts, all);
    strings.begin[threadIdx.x] = frame.offsets[stretch] + before;
    if (threadIdx.x == 0) strings.begin[kThreads] = frame.offsets[stretch] + all;
    __syncthreads();
    const uint32_t number = blocks.of_stretch(frame.job.spec.count, stretch);
    for (uint32_t k = half_warp_of_block(); k < number; k += kThreads / kLanes) {
        const auto* const string =
            reinterpret_cast<const uint8_t*>(frame.string(stretch * blocks.per_stretch() + k));
        const uint64_t first = strings.begin[k],
                       last = strings.begin[k + 1] < end ? strings.begin[k + 1] : end;
        for (uint64_t at = first + lane_of_half_warp(); at < last; at += kLanes) out[at] = string[at - first];
    }
}

// Puts the parts together: the front by words, of which the last may not be whole, all else by bytes.
__global__ void __launch_bounds__(kThreads) put_together(EliasFrame frame, uint64_t* out, uint64_t bytes) {
    auto* const out_bytes = reinterpret_cast<uint8_t*>(out);
    const uint64_t self = thread_of_grid(), threads = threads_of_grid();
    const uint64_t front = frame.front < bytes ? frame.front : bytes;
    for (uint64_t k = self; k < front / 8; k += threads)
        out[k] = k == kLengthWord ? bytes : *word_of(frame.job.frame, k);
    for (uint64_t at = front / 8 * 8 + self; at < front; at += threads) out_bytes[at] = frame.job.frame[at];
    const uint64_t coded = *word_of(frame.job.frame, offsetof(Header, coded_bytes) / 8);
    for (uint64_t at = coded + self; at < bytes; at += threads) out_bytes[at] = 0;
    for (uint64_t s = blockIdx.x; s < stretches_of(frame.job.spec.count); s += gridDim.x)
        put_stretch(frame, s, out_bytes, bytes, *shared_memory<Strings>());
}

__global__ void __launch_bounds__(kThreads) find_terms(const uint64_t* out, uint64_t bytes, uint64_t* terms) {
    const uint64_t self = thread_of_grid(), threads = threads_of_grid();
    const uint64_t sum = terms_of(out, 0, kChecksumWord, self, threads) +
                         terms_of(out, kChecksumWord + 1, bytes / 8, self, threads);
    const uint64_t total = block_sum(sum, shared_memory<uint64_t>());
    if (threadIdx.x == 0) terms[blockIdx.x] = total;
}

}  // namespace

uint64_t elias_scratch_bytes(const qsgd_spec& spec) { return Scratch(spec).bytes; }

cudaError_t begin_elias_frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw,
                              void* scratch, uint64_t* frame_bytes, void* stream) {
    const Scratch places(spec);
    const EliasFrame frame = places.frame(spec, gradient, draw, scratch);
    const TreeScratch tree = places.tree(scratch);
    const double* squared_norm = nullptr;
    cudaError_t error = cudaSuccess;
    if (spec.count) {
        error = find_scales(frame.job, tree, stream);
        if (!error) error = encode_elias_blocks(frame, stream);
        const bool norm = spec.flags & QSGD_FLAG_SQUARED_NORM;
        if (!error && norm) error = find_squared_norm(frame.job, tree, &squared_norm, stream);
    }
    return error ? error
                 : launch(measure, {1, kMeasuring, 8 * kMeasuring / kWarp, stream}, frame, squared_norm,
                          frame_bytes);
}

cudaError_t end_elias_frame(const qsgd_spec& spec, void* scratch, uint64_t* out, uint64_t bytes,
                            void* stream) {
    const EliasFrame frame = Scratch(spec).frame(spec, nullptr, nullptr, scratch);
    const uint32_t stretches = blocks_for(stretches_of(spec.count));
    const cudaError_t error =
        launch(put_together, {stretches, kThreads, sizeof(Strings), stream}, frame, out, bytes);
    if (error) return error;
    const uint32_t blocks = blocks_for(bytes / (64 * kThreads));
    const Launch how = {blocks, kThreads, 8 * kThreads / kWarp, stream};
    const cudaError_t summed = launch(find_terms, how, out, bytes, frame.job.terms);
    return summed ? summed : seal_frame(frame.job.terms, blocks, out, stream);
}

}  // namespace qsgd
