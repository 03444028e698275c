// Scales before anything else is done with their buckets.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "cpu/scale.h"
#include "cpu/threads.h"

namespace qsgd {
namespace {

// The sum blocks of all buckets, numbered through.
struct SumBlocks {
    uint64_t size, per_bucket, last_length, count, buckets;
    explicit SumBlocks(const EncodeJob& job)
        : size(job.spec.bucket_size < job.spec.count ? job.spec.bucket_size : job.spec.count),
          per_bucket(ceil_div(size, kSumBlock)),
          last_length(job.spec.count - (job.at.buckets - 1) * size),
          count((job.at.buckets - 1) * per_bucket + ceil_div(last_length, kSumBlock)),
          buckets(job.at.buckets) {}

    // Calls body(bucket, length, first, last) for each bucket, whose blocks are [first, last).
    template <class Body>
    void each_bucket(Body&& body) const {
        for (uint64_t k = 0; k + 1 < buckets; ++k) body(k, size, k * per_bucket, (k + 1) * per_bucket);
        body(buckets - 1, last_length, (buckets - 1) * per_bucket, count);
    }
};

// The scales of all buckets to `scales`, in a pass of its own that all threads share.
inline void find_scales_apart(const EncodeJob& job, uint32_t threads, void* scales) {
    if (job.at.buckets == 0) return;
    const SumBlocks blocks(job);
    std::vector<double> sums(blocks.count);
    std::vector<uint32_t> largest(blocks.count);
    parallel(threads, blocks.count, [&](uint32_t, uint64_t first, uint64_t last) {
        kernels().sum_blocks(job, first, last, sums.data(), largest.data());
    });
    blocks.each_bucket([&](uint64_t bucket, uint64_t, uint64_t first, uint64_t last) {
        Statistics all;
        PairwiseTree tree;
        for (uint64_t k = first; k < last; ++k) {
            if (largest[k] > all.largest_bits) all.largest_bits = largest[k];
            tree.add(sums[k]);
        }
        all.sum = tree.total();
        const float scale = scale_of(all, job.spec.norm);
        memcpy(static_cast<uint8_t*>(scales) + 4 * bucket, &scale, sizeof scale);
    });
}

// The same with onebit, whose buckets have two.
inline void find_means_apart(const EncodeJob& job, uint32_t threads, void* scales) {
    const SumBlocks blocks(job);
    std::vector<Sides> sides(blocks.count);
    parallel(threads, blocks.count, [&](uint32_t, uint64_t first, uint64_t last) {
        kernels().sum_sides(job, first, last, sides.data());
    });
    blocks.each_bucket([&](uint64_t bucket, uint64_t length, uint64_t first, uint64_t last) {
        SidesTree tree;
        for (uint64_t k = first; k < last; ++k) tree.add(sides[k]);
        write_means(tree.total(), length, static_cast<uint8_t*>(scales) + 8 * bucket);
    });
}

}  // namespace
}  // namespace qsgd
