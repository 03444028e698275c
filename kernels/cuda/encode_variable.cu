// A frame of variable length in two steps: the C ABI, and the checksum at the end.
#include "cuda/encode_variable.cuh"
#include "cuda/status.h"

namespace qsgd {
namespace {

__global__ void __launch_bounds__(kThreads) seal(const uint64_t* terms, uint32_t blocks, uint64_t* out) {
    uint64_t sum = 0;
    for (uint32_t k = threadIdx.x; k < blocks; k += kThreads) sum += terms[k];
    sum = block_sum(sum, shared_memory<uint64_t>());
    if (threadIdx.x == 0) out[kChecksumWord] = sum;
}

bool possible(const qsgd_spec* spec, const void* scratch, uint64_t scratch_bytes) {
    if (!spec || !spec_possible(*spec) || !has_variable_width(spec->codec)) return false;
    return scratch && aligned(scratch, 8) && scratch_bytes >= variable_scratch_bytes(*spec);
}

}  // namespace

cudaError_t seal_frame(const uint64_t* terms, uint32_t blocks, uint64_t* out, void* stream) {
    return launch(seal, {1, kThreads, 8 * kThreads / kWarp, stream}, terms, blocks, out);
}

}  // namespace qsgd

using namespace qsgd;

int qsgd_cuda_encode_begin(const qsgd_spec* spec, const void* gradient, const qsgd_draw* draw, void* scratch,
                           uint64_t scratch_bytes, uint64_t* frame_bytes, void* stream) {
    if (!possible(spec, scratch, scratch_bytes) || !frame_bytes || !aligned(frame_bytes, 8))
        return QSGD_BAD_ARGUMENT;
    if ((!gradient && spec->count) || !aligned(gradient, element_bytes(spec->dtype)) || !aligned(draw, 8))
        return QSGD_BAD_ARGUMENT;
    const auto begin = is_elias(spec->codec) ? begin_elias_frame : begin_rans_frame;
    return status_of(begin(*spec, gradient, draw, scratch, frame_bytes, stream));
}

int qsgd_cuda_encode_end(const qsgd_spec* spec, void* frame, uint64_t frame_bytes, void* scratch,
                         uint64_t scratch_bytes, void* stream) {
    if (!possible(spec, scratch, scratch_bytes) || !frame || !aligned(frame, 8) || frame_bytes % 16)
        return QSGD_BAD_ARGUMENT;
    if (frame_bytes < layout_of(*spec).payload) return QSGD_FRAME_TOO_SMALL;
    const auto end = is_elias(spec->codec) ? end_elias_frame : end_rans_frame;
    return status_of(end(*spec, scratch, static_cast<uint64_t*>(frame), frame_bytes, stream));
}
