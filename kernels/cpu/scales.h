// Scales before anything else is done with their buckets.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "cpu/scale.h"
#include "cpu/threads.h"

namespace qsgd {
namespace {

// The scales of all buckets to `scales`, in a pass of its own that all threads share.
inline void find_scales_apart(const EncodeJob& job, uint32_t threads, void* scales) {
    const qsgd_spec& spec = job.spec;
    if (job.at.buckets == 0) return;
    const uint64_t size = spec.bucket_size < spec.count ? spec.bucket_size : spec.count;
    const uint64_t per_bucket = ceil_div(size, kSumBlock);
    const uint64_t last_length = spec.count - (job.at.buckets - 1) * size;
    const uint64_t blocks = (job.at.buckets - 1) * per_bucket + ceil_div(last_length, kSumBlock);
    std::vector<double> sums(blocks);
    std::vector<uint32_t> largest(blocks);
    parallel(threads, blocks, [&](uint32_t, uint64_t first, uint64_t last) {
        kernels().sum_blocks(job, first, last, sums.data(), largest.data());
    });
    for (uint64_t bucket = 0; bucket < job.at.buckets; ++bucket) {
        const uint64_t first = bucket * per_bucket;
        const uint64_t last = bucket + 1 == job.at.buckets ? blocks : first + per_bucket;
        Statistics all;
        PairwiseTree tree;
        for (uint64_t k = first; k < last; ++k) {
            if (largest[k] > all.largest_bits) all.largest_bits = largest[k];
            tree.add(sums[k]);
        }
        all.sum = tree.total();
        const float scale = scale_of(all, spec.norm);
        memcpy(static_cast<uint8_t*>(scales) + 4 * bucket, &scale, sizeof scale);
    }
}

}  // namespace
}  // namespace qsgd
