// One launch for several jobs, whose list lies in memory of the device: a block takes a part of one of them.
#pragma once

#include "cuda/launch.cuh"

namespace qsgd {

// A job, and which of the launch's blocks share it.
template <class Job>
struct Listed {
    Job job;
    uint64_t first;
    uint32_t blocks;
};

template <class Job>
struct JobList {
    const Listed<Job>* jobs;
    uint32_t count;
    uint64_t blocks;  // of all
    uint64_t shared;  // bytes of shared memory that a part needs

    Launch launch(uint32_t threads, void* stream) const {
        return {blocks_for(blocks), threads, shared + sizeof(Listed<Job>), stream};
    }
};

// Calls body(job, part) for this block's parts.
template <class Job, class Body>
__device__ __forceinline__ void each_part(const JobList<Job>& list, Body body) {
    Listed<Job>& mine = *reinterpret_cast<Listed<Job>*>(qsgd_shared_memory + list.shared);
    for (uint64_t block = blockIdx.x; block < list.blocks; block += gridDim.x) {
        __syncthreads();  // shared memory is used again
        for (uint32_t k = threadIdx.x; k < list.count; k += blockDim.x)
            if (block - list.jobs[k].first < list.jobs[k].blocks) mine = list.jobs[k];
        __syncthreads();
        body(mine.job, Part{static_cast<uint32_t>(block - mine.first), mine.blocks});
    }
}

// Calls body(job, blocks) for this block's jobs, of which it does all.
template <class Job, class Body>
__device__ __forceinline__ void each_job(const JobList<Job>& list, Body body) {
    for (uint32_t k = blockIdx.x; k < list.count; k += gridDim.x) {
        __syncthreads();  // shared memory is used again
        body(list.jobs[k].job, list.jobs[k].blocks);
    }
}

// As many jobs as a kernel's parameters have room for.
template <class Job>
struct Page {
    Listed<Job> jobs[4000 / sizeof(Listed<Job>)];
};

template <class Job>
__global__ void put_page(const __grid_constant__ Page<Job> page, uint32_t count, Listed<Job>* to) {
    static_assert(sizeof(Listed<Job>) % 8 == 0, "copied by words");
    const auto* const from = reinterpret_cast<const uint64_t*>(page.jobs);
    for (uint32_t k = threadIdx.x; k < count * (sizeof(Listed<Job>) / 8); k += blockDim.x)
        reinterpret_cast<uint64_t*>(to)[k] = from[k];
}

// Makes a list at `memory`. It travels as parameters of kernels, which the driver copies: no memory of the
// host is read later, and a captured graph keeps them.
template <class Job>
class ListWriter {
  public:
    ListWriter(void* memory, void* stream) : first_(static_cast<Listed<Job>*>(memory)), stream_(stream) {}

    void add(const Job& job, uint32_t blocks) {
        page_.jobs[on_page_++] = {job, blocks_, blocks};
        blocks_ += blocks, ++count_;
        if (on_page_ == sizeof page_.jobs / sizeof page_.jobs[0]) put();
    }

    cudaError_t finish(uint64_t shared, JobList<Job>& list) {
        if (on_page_) put();
        list = {first_, count_, blocks_, shared};
        return error_;
    }

  private:
    void put() {
        Listed<Job>* const to = first_ + (count_ - on_page_);
        if (!error_) error_ = launch(put_page<Job>, {1, kThreads, 0, stream_}, page_, on_page_, to);
        on_page_ = 0;
    }

    Listed<Job>* const first_;
    void* const stream_;
    Page<Job> page_ = {};
    uint32_t on_page_ = 0, count_ = 0;
    uint64_t blocks_ = 0;
    cudaError_t error_ = cudaSuccess;
};

}  // namespace qsgd
