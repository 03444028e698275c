// What precedes the blocks of an Elias payload, checked, and where each stretch's blocks are
// (docs/wire_format.md, sections 6 and 9): a block of threads takes a frame.
#include "cuda/frames.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kOpening = 1024;  // threads

// Where the strings begin; 0 if the payload is none that an encoder writes. Whatever is read was checked to
// lie in it.
__device__ uint64_t read_head(const FrameView& frame, EliasBlocks& blocks) {
    const uint64_t count = frame.header.count, bytes = frame.header.coded_bytes - frame.at.payload;
    blocks = {};
    if (count == 0) return frame.at.payload;
    if (bytes < kEliasHead) return 0;
    const uint8_t* const head = frame.base + frame.at.payload;
    uint32_t words[2];
    memcpy(words, head, sizeof words);
    if (!is_elias_block(words[0], frame.header.codec == QSGD_CODEC_ELIAS_SPARSE) || words[1]) return 0;
    blocks = {words[0], reinterpret_cast<const uint16_t*>(head + kEliasHead)};
    const uint64_t number = ceil_div(count, blocks.size);
    return (bytes - kEliasHead) / 2 < number ? 0 : frame.at.payload + kEliasHead + 2 * number;
}

__global__ void __launch_bounds__(kOpening) open_payloads(SumJob job) {
    if (!job.opened()) return;
    for (uint32_t frame = blockIdx.x; frame < job.frame_count; frame += gridDim.x) {
        const FrameView& view = job.views[frame];
        if (!is_elias(view.header.codec)) continue;
        EliasBlocks blocks;
        const uint64_t begin = read_head(view, blocks);
        const bool open =
            begin && blocks.place_stretches(view.header.count, begin, job.coded.offsets_of(frame),
                                            shared_memory<uint64_t>()) == view.header.coded_bytes;
        if (threadIdx.x != 0) continue;
        job.coded.views[frame].open = open;
        job.coded.views[frame].elias = blocks;
        if (!open) job.fail(kPayloads, frame, QSGD_BAD_PAYLOAD);
    }
}

}  // namespace

cudaError_t open_elias_payloads(const SumJob& job, void* stream) {
    return launch(open_payloads, {blocks_for(job.frame_count), kOpening, 8 * kOpening / kWarp, stream}, job);
}

}  // namespace qsgd
