// Scales and sums of squares in passes of their own (docs/wire_format.md, sections 2 and 3): half a warp
// takes a block of 4096 elements of a bucket, and trees join the blocks.
#include "cuda/elements.cuh"
#include "cuda/encode.cuh"

namespace qsgd {
namespace {

constexpr uint64_t kSubtree = 1024;  // leaves that a block of threads joins: ten levels

// Trees side by side, all but the last with as many leaves. A maximum is found as a sum is.
struct Forest {
    uint64_t trees, leaves, of_last;

    QSGD_HD uint64_t total(const Forest& f) { return f.trees ? (f.trees - 1) * f.leaves + f.of_last : 0; }
    QSGD_HD Forest joined(const Forest& f) {
        return {f.trees, ceil_div(f.leaves, kSubtree), ceil_div(f.of_last, kSubtree)};
    }
};

// The buckets' blocks.
Forest blocks_of(const qsgd_spec& spec) {
    const uint64_t size = spec.bucket_size < spec.count ? spec.bucket_size : spec.count;
    if (spec.count == 0) return {0, 0, 0};
    const uint64_t buckets = ceil_div(spec.count, size);
    return {buckets, ceil_div(size, kSumBlock), ceil_div(spec.count - (buckets - 1) * size, kSumBlock)};
}

__device__ __forceinline__ void put_scale(const EncodeJob& job, uint64_t bucket, float scale) {
    job.scales()[bucket] = scale;
    if (bucket + 1 == job.at.buckets && bucket % 2 == 0) job.scales()[bucket + 1] = 0;  // a whole word
}

// A maximum's bits are a number that float64 has.
__device__ __forceinline__ float scale_from(double statistic, bool squares) {
    return squares ? l2_scale(statistic) : max_scale(static_cast<uint32_t>(statistic));
}

// What half a warp finds of `length` elements from number `first` on: a sum of squares, or the bits of the
// largest magnitude.
template <class T>
__device__ __forceinline__ double statistic_of(const void* gradient, uint64_t first, uint64_t length,
                                               bool squares) {
    const auto* at = static_cast<const typename T::Element*>(gradient) + first;
    double sum = 0;
    float largest = 0;
#pragma unroll 8
    for (uint64_t i = lane_of_half_warp(); i < length; i += kLanes) {
        const float v = T::widen(at[i]);
        if (squares)
            sum += static_cast<double>(v) * static_cast<double>(v);
        else
            largest = larger_magnitude(largest, v);
    }
    return squares ? across<kLanes>(sum, Sum())
                   : static_cast<double>(across<kLanes>(bits_from_float(largest), Maximum()));
}

// The statistics of all blocks to `out`; or, if there is none, the scales of buckets of one block.
__global__ void __launch_bounds__(kThreads)
    find_leaves(EncodeJob job, Forest blocks, bool squares, double* out) {
    const uint64_t total = Forest::total(blocks), half_warps = threads_of_grid() / kLanes;
    const uint64_t self = thread_of_grid() / kLanes;
    for (uint64_t first = self / 2 * 2; first < total; first += half_warps) {  // the same for the whole warp
        const uint64_t block = first + self % 2, tree = block / blocks.leaves, place = block % blocks.leaves;
        const uint64_t begin = tree * job.spec.bucket_size + place * kSumBlock;
        uint64_t length = 0;
        if (block < total) {
            const uint64_t bucket_end = (tree + 1) * job.spec.bucket_size;
            const uint64_t end = bucket_end < job.spec.count ? bucket_end : job.spec.count;
            length = end - begin < kSumBlock ? end - begin : kSumBlock;
        }
        double statistic = 0;
        with_dtype(job.spec.dtype, [&](auto t) {
            statistic = statistic_of<decltype(t)>(job.gradient, begin, length, squares);
        });
        if (lane_of_half_warp() != 0 || block >= total) continue;
        if (out)
            out[block] = statistic;
        else
            put_scale(job, tree, scale_from(statistic, squares));
    }
}

// Ten levels of every tree, in which a last node without partner is kept.
__global__ void __launch_bounds__(kThreads)
    join_leaves(Forest leaves, Forest nodes, bool sums, const double* in, double* out) {
    double* const shared = shared_memory<double>();
    for (uint64_t node = blockIdx.x; node < Forest::total(nodes); node += gridDim.x) {
        const uint64_t tree = node / nodes.leaves, first = node % nodes.leaves * kSubtree;
        const uint64_t left = (tree + 1 == leaves.trees ? leaves.of_last : leaves.leaves) - first;
        const auto count = static_cast<uint32_t>(left < kSubtree ? left : kSubtree);
        for (uint32_t k = threadIdx.x; k < count; k += kThreads)
            shared[k] = in[tree * leaves.leaves + first + k];
        for (uint32_t m = count; m > 1; m = (m + 1) / 2) {
            double joined[kSubtree / 2 / kThreads];
            __syncthreads();
            for (uint32_t j = 0, k = threadIdx.x; j < kSubtree / 2 / kThreads; ++j, k += kThreads) {
                if (2 * k >= m) continue;
                const double a = shared[2 * k], b = 2 * k + 1 < m ? shared[2 * k + 1] : 0;
                joined[j] = 2 * k + 1 == m ? a : sums ? Sum()(a, b) : Maximum()(a, b);
            }
            __syncthreads();
            for (uint32_t j = 0, k = threadIdx.x; j < kSubtree / 2 / kThreads; ++j, k += kThreads)
                if (2 * k < m) shared[k] = joined[j];
        }
        if (threadIdx.x == 0) out[node] = shared[0];  // which this thread wrote
        __syncthreads();
    }
}

__global__ void __launch_bounds__(kThreads)
    put_scales(EncodeJob job, bool squares, const double* statistics) {
    for (uint64_t k = thread_of_grid(); k < job.at.buckets; k += threads_of_grid())
        put_scale(job, k, scale_from(statistics[k], squares));
}

// Joins trees until each is one node. *nodes is where they lie, *other the array beside it.
cudaError_t join(Forest& forest, bool sums, double*& nodes, double*& other, void* stream) {
    while (forest.leaves > 1) {
        const Forest joined = Forest::joined(forest);
        const cudaError_t error =
            launch(join_leaves, {blocks_for(Forest::total(joined)), kThreads, 8 * kSubtree, stream}, forest,
                   joined, sums, nodes, other);
        if (error) return error;
        double* const there = nodes;
        nodes = other, other = there;
        forest = joined;
    }
    return cudaSuccess;
}

cudaError_t find_blocks(const EncodeJob& job, const Forest& blocks, bool squares, double* out, void* stream) {
    const uint32_t grid = blocks_for(ceil_div(Forest::total(blocks), kThreads / kLanes));
    return launch(find_leaves, {grid, kThreads, 0, stream}, job, blocks, squares, out);
}

}  // namespace

uint64_t tree_leaves(const qsgd_spec& spec) {
    const Forest blocks = blocks_of(spec);
    const bool kept = blocks.leaves > 1 || spec.flags & QSGD_FLAG_SQUARED_NORM;
    return kept ? Forest::total(blocks) : 0;
}

uint64_t tree_nodes(const qsgd_spec& spec) {
    const Forest blocks = blocks_of(spec);
    const uint64_t of_buckets = blocks.leaves > 1 ? blocks.trees * ceil_div(blocks.leaves, kSubtree) : 0;
    const uint64_t of_all = spec.flags & QSGD_FLAG_SQUARED_NORM ? ceil_div(blocks.trees, kSubtree) : 0;
    return of_buckets < of_all ? of_all : of_buckets;
}

cudaError_t find_scales(const EncodeJob& job, const TreeScratch& scratch, void* stream) {
    const bool squares = job.spec.norm == QSGD_NORM_L2;
    Forest forest = blocks_of(job.spec);
    if (forest.leaves <= 1) return find_blocks(job, forest, squares, nullptr, stream);
    double *nodes = scratch.leaves, *other = scratch.nodes;
    cudaError_t error = find_blocks(job, forest, squares, nodes, stream);
    if (!error) error = join(forest, squares, nodes, other, stream);
    if (error) return error;
    const uint32_t grid = blocks_for(ceil_div(job.at.buckets, kThreads));
    return launch(put_scales, {grid, kThreads, 0, stream}, job, squares, nodes);
}

cudaError_t find_squared_norm(const EncodeJob& job, const TreeScratch& scratch, const double** result,
                              void* stream) {
    Forest forest = blocks_of(job.spec);
    *result = nullptr;
    if (forest.trees == 0) return cudaSuccess;
    double *nodes = scratch.leaves, *other = scratch.nodes;
    cudaError_t error = find_blocks(job, forest, true, nodes, stream);
    if (!error) error = join(forest, true, nodes, other, stream);
    forest = {1, forest.trees, forest.trees};
    if (!error) error = join(forest, true, nodes, other, stream);
    *result = nodes;
    return error;
}

}  // namespace qsgd
