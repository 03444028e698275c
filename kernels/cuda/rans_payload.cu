// What precedes the streams of a rans payload, checked, and where each stream is (docs/wire_format.md,
// sections 6 and 9): a block takes a frame.
#include "cuda/frames.cuh"
#include "cuda/scan.cuh"

namespace qsgd {
namespace {

struct Shared {
    uint64_t parts[kThreads / kWarp];
    const uint8_t* lengths;  // null if the payload is none that an encoder writes
    uint64_t left;           // bytes of the streams
};

// The parts of a payload, taken one after the other. Everything that is read was checked to lie in it.
struct PayloadParts {
    const uint8_t* at;
    uint64_t left;

    __device__ bool take(uint64_t bytes, const uint8_t*& taken) {
        taken = at;
        if (bytes > left) return false;
        at += bytes, left -= bytes;
        return true;
    }

    __device__ bool tables(RansView& view) {
        for (uint32_t c = 0; c < view.classes; ++c) {
            const uint8_t* bytes;
            if (!read_rans_table(at, left, view.tables[c])) return false;
            if (!take(rans_table_bytes(view.tables[c]), bytes)) return false;
        }
        return true;
    }
};

__device__ bool read_head(const FrameView& frame, RansView& view, Shared& shared) {
    const uint64_t count = frame.header.count;
    PayloadParts parts = {frame.base + frame.at.payload, frame.header.coded_bytes - frame.at.payload};
    if (count > 0) {
        const uint64_t units = ceil_div(ceil_div(count, kUnit), 2);
        const uint8_t* head;
        if (!parts.take(kRansHead, head) || !read_rans_head(head, count, view)) return false;
        if (!parts.tables(view)) return false;
        if (!parts.take(view.mode == kOneClass ? 0 : units, view.units)) return false;
        if (!parts.take(view.columns, view.column_bytes)) return false;
    }
    const uint64_t streams = rans_all_streams(count);
    if (parts.left / 4 < streams || !parts.take(4 * streams, shared.lengths)) return false;
    shared.left = parts.left;
    return true;
}

__device__ __forceinline__ uint64_t stream_bytes(const uint8_t* length) {
    uint32_t words;
    memcpy(&words, length, sizeof words);
    return 2 * static_cast<uint64_t>(words) + kRansStateBytes;
}

// Where the streams begin; returns whether they fill the payload.
__device__ bool place_streams(const FrameView& frame, uint64_t* offsets, Shared& shared) {
    const uint64_t streams = rans_all_streams(frame.header.count), left = shared.left;
    const Share mine(streams);
    uint64_t bytes = 0, all;
    for (uint64_t s = mine.begin; s < mine.end && bytes <= left; ++s)  // the sum of all has room
        bytes += stream_bytes(shared.lengths + 4 * s);
    uint64_t at = block_scan(bytes, shared.parts, all);
    if (all != left) return false;
    at += frame.header.coded_bytes - left;
    for (uint64_t s = mine.begin; s < mine.end; ++s) {
        offsets[s] = at;
        at += stream_bytes(shared.lengths + 4 * s);
    }
    if (threadIdx.x == 0) offsets[streams] = frame.header.coded_bytes;
    return true;
}

__global__ void __launch_bounds__(kThreads, 1) open_payloads(SumJob job) {
    Shared& shared = *shared_memory<Shared>();
    if (!job.opened()) return;
    for (uint32_t frame = blockIdx.x; frame < job.frame_count; frame += gridDim.x) {
        const FrameView& view = job.views[frame];
        if (view.header.codec != QSGD_CODEC_RANS) continue;
        __syncthreads();  // shared memory is used again
        if (threadIdx.x == 0 && !read_head(view, job.coded.views[frame].rans, shared))
            shared.lengths = nullptr;
        __syncthreads();
        const bool open = shared.lengths && place_streams(view, job.coded.offsets_of(frame), shared);
        if (threadIdx.x != 0) continue;
        job.coded.views[frame].open = open;
        if (!open) job.fail(kPayloads, frame, QSGD_BAD_PAYLOAD);
    }
}

}  // namespace

cudaError_t open_rans_payloads(const SumJob& job, void* stream) {
    return launch(open_payloads, {blocks_for(job.frame_count), kThreads, sizeof(Shared), stream}, job);
}

}  // namespace qsgd
