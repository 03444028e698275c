// One frame: the passes over the gradient, shared out over threads, and the header.
#pragma once

#include <vector>

#include "cpu/checked.h"
#include "cpu/encode_elias.h"
#include "cpu/encode_rans.h"
#include "cpu/scales.h"

namespace qsgd {
namespace {

inline uint64_t squared_norm_bits(const EncodeJob& job, uint32_t threads) {
    const uint64_t chunks = ceil_div(job.at.buckets, kNormChunk);
    std::vector<double> sums(chunks);
    parallel(threads, chunks, [&](uint32_t, uint64_t first, uint64_t last) {
        for (uint64_t k = first; k < last; ++k) {
            const uint64_t end = (k + 1) * kNormChunk;
            sums[k] =
                kernels().bucket_squares(job, k * kNormChunk, end < job.at.buckets ? end : job.at.buckets);
        }
    });
    PairwiseTree tree;  // every chunk but the last is a complete subtree
    for (double sum : sums) tree.add(sum);
    return canonical_bits(tree.total());
}

inline uint64_t encode_payload(const EncodeJob& job, uint32_t threads) {
    std::vector<uint64_t> terms(threads);
    parallel(threads, ceil_div(job.spec.count, kBlock), [&](uint32_t worker, uint64_t first, uint64_t last) {
        terms[worker] = first < last ? kernels().encode_blocks(job, first, last) : 0;
    });
    uint64_t all = 0;
    for (uint64_t part : terms) all += part;
    return all;
}

// The most bytes of a payload of variable length.
inline uint64_t most_variable_bytes(const qsgd_spec& spec) {
    return is_elias(spec.codec) ? most_elias_bytes(spec) : most_rans_bytes(spec.count, spec.columns);
}

// Writes the payload and the zeros after it, the length of which it finds; returns their terms of the
// checksum.
inline uint64_t encode_variable(EncodeJob& job, uint32_t threads) {
    const uint8_t* const end =
        is_elias(job.spec.codec) ? encode_elias_payload(job, threads) : encode_rans_payload(job, threads);
    job.at.coded_bytes = static_cast<uint64_t>(end - job.frame);
    job.at.frame_bytes = roundup16(job.at.coded_bytes);
    memset(job.frame + job.at.coded_bytes, 0, job.at.frame_bytes - job.at.coded_bytes);
    return checksum_terms(job.frame, job.at.payload, job.at.frame_bytes);
}

// Returns the frame's length.
inline uint64_t encode_frame(EncodeJob job, uint32_t allowed_threads) {
    const uint32_t threads = useful_threads(allowed_threads, job.spec.count);
    const uint64_t scales_end = QSGD_HEADER_BYTES + 4 * job.at.scales;
    memset(job.frame + scales_end, 0, job.at.payload - scales_end);
    job.scales_ready = job.at.buckets > 0 && job.spec.bucket_size >= kLargeBucket;
    if (job.scales_ready) {
        const auto find = job.spec.codec == QSGD_CODEC_ONEBIT ? find_means_apart : find_scales_apart;
        find(job, threads, job.frame + QSGD_HEADER_BYTES);
    }
    const uint64_t payload_terms =
        has_fixed_width(job.spec.codec) ? encode_payload(job, threads) : encode_variable(job, threads);
    const Header header = header_of(
        job.spec, job.at, job.spec.flags & QSGD_FLAG_SQUARED_NORM ? squared_norm_bits(job, threads) : 0);
    memcpy(job.frame, &header, sizeof header);
    write_checksum(job.frame, payload_terms + checksum_terms(job.frame, 0, job.at.payload));
    return job.at.frame_bytes;
}

}  // namespace
}  // namespace qsgd
