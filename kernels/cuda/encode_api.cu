// Encoding with a fixed width, of one gradient or of many: scratch memory, the C ABI.
#include "cuda/encode_variable.cuh"
#include "cuda/status.h"

namespace qsgd {
namespace {

struct Scratch {
    uint64_t terms_bytes, leaves_bytes, bytes;
    explicit Scratch(const qsgd_spec& spec)
        : terms_bytes(8 * kMostBlocks),
          leaves_bytes(8 * tree_leaves(spec)),
          bytes(terms_bytes + leaves_bytes + 8 * tree_nodes(spec)) {}

    TreeScratch tree(void* scratch) const {
        auto* const leaves = reinterpret_cast<double*>(static_cast<uint8_t*>(scratch) + terms_bytes);
        return {leaves, leaves + leaves_bytes / 8};
    }
};

bool possible(const qsgd_spec* spec) {
    return spec && spec_possible(*spec) && rounds_to_fixed_width(spec->codec);
}

int check(const qsgd_encoding& one) {
    if (!possible(one.spec) || !one.frame || !aligned(one.frame, 8)) return QSGD_BAD_ARGUMENT;
    if ((!one.gradient && one.spec->count) || !aligned(one.gradient, element_bytes(one.spec->dtype)))
        return QSGD_BAD_ARGUMENT;
    return one.capacity < layout_of(*one.spec).frame_bytes ? QSGD_FRAME_TOO_SMALL : QSGD_OK;
}

EncodeJob job_of(const qsgd_encoding& one, const qsgd_draw* draw, void* terms) {
    return {*one.spec,
            layout_of(*one.spec),
            one.gradient,
            static_cast<uint8_t*>(one.frame),
            draw,
            static_cast<uint64_t*>(terms),
            0};
}

// Scratch memory of many: the list, the terms of jobs on it, and what those need that are not on it.
struct ManyScratch {
    uint64_t terms, alone, bytes;

    ManyScratch(const qsgd_encoding* all, uint32_t count)
        : terms(sizeof(Listed<EncodeJob>) * count), alone(terms) {
        uint64_t most = 0;
        for (uint32_t k = 0; k < count; ++k) {
            EncodeJob job = job_of(all[k], nullptr, nullptr);
            if (joins(job))
                alone += 8 * blocks_of(job);
            else
                most = Scratch(job.spec).bytes < most ? most : Scratch(job.spec).bytes;
        }
        bytes = alone + most;
    }

    // Whether a job goes on the list: then one pass finds all of its frame.
    static bool joins(EncodeJob& job) {
        return find_group(job) && !(job.spec.flags & QSGD_FLAG_SQUARED_NORM);
    }
};

cudaError_t encode_alone(const EncodeJob& job, void* stream) {
    return encode_frame(job, Scratch(job.spec).tree(job.terms), stream);
}

// All gradients of one codec that go on the list; `terms` are for them.
cudaError_t encode_joined(const qsgd_encoding* all, uint32_t count, uint8_t codec, const qsgd_draw* draw,
                          void* list, uint64_t*& terms, void* stream) {
    ListWriter<EncodeJob> jobs(list, stream);
    for (uint32_t k = 0; k < count; ++k) {
        EncodeJob job = job_of(all[k], draw, terms);
        if (job.spec.codec != codec || !ManyScratch::joins(job)) continue;
        jobs.add(job, blocks_of(job));
        terms += blocks_of(job);
    }
    return encode_frames(jobs, codec, stream);
}

cudaError_t encode_many(const qsgd_encoding* all, uint32_t count, const qsgd_draw* draw, void* scratch,
                        void* stream) {
    const ManyScratch needs(all, count);
    auto* const base = static_cast<uint8_t*>(scratch);
    auto* terms = reinterpret_cast<uint64_t*>(base + needs.terms);
    cudaError_t error = cudaSuccess;
    for (const uint8_t codec : {QSGD_CODEC_PACKED, QSGD_CODEC_TERNARY})
        if (!error) error = encode_joined(all, count, codec, draw, scratch, terms, stream);
    for (uint32_t k = 0; k < count && !error; ++k) {
        EncodeJob job = job_of(all[k], draw, base + needs.alone);
        if (!ManyScratch::joins(job)) error = encode_alone(job, stream);
    }
    return error;
}

}  // namespace
}  // namespace qsgd

using namespace qsgd;

int qsgd_cuda_encode_scratch(const qsgd_spec* spec, uint64_t* bytes) {
    if (!spec || !bytes || !spec_possible(*spec)) return QSGD_BAD_ARGUMENT;
    if (has_variable_width(spec->codec))
        *bytes = variable_scratch_bytes(*spec);
    else if (rounds_to_fixed_width(spec->codec))
        *bytes = Scratch(*spec).bytes;
    else
        return QSGD_BAD_ARGUMENT;
    return QSGD_OK;
}

int qsgd_cuda_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity,
                     const qsgd_draw* draw, void* scratch, uint64_t scratch_bytes, void* stream) {
    if (!scratch || !aligned(scratch, 8) || !aligned(draw, 8)) return QSGD_BAD_ARGUMENT;
    const qsgd_encoding one = {spec, gradient, frame, capacity};
    const int status = check(one);
    if (status != QSGD_OK) return status;
    if (scratch_bytes < Scratch(*spec).bytes) return QSGD_BAD_ARGUMENT;
    return status_of(encode_alone(job_of(one, draw, scratch), stream));
}

int qsgd_cuda_encode_many_scratch(const qsgd_encoding* all, uint32_t count, uint64_t* bytes) {
    if (!all || !count || !bytes) return QSGD_BAD_ARGUMENT;
    for (uint32_t k = 0; k < count; ++k)
        if (!possible(all[k].spec)) return QSGD_BAD_ARGUMENT;
    *bytes = ManyScratch(all, count).bytes;
    return QSGD_OK;
}

int qsgd_cuda_encode_many(const qsgd_encoding* all, uint32_t count, const qsgd_draw* draw, void* scratch,
                          uint64_t scratch_bytes, void* stream) {
    if (!all || !count || !scratch || !aligned(scratch, 8) || !aligned(draw, 8)) return QSGD_BAD_ARGUMENT;
    for (uint32_t k = 0; k < count; ++k) {
        const int status = check(all[k]);
        if (status != QSGD_OK) return status;
    }
    if (scratch_bytes < ManyScratch(all, count).bytes) return QSGD_BAD_ARGUMENT;
    return status_of(encode_many(all, count, draw, scratch, stream));
}
