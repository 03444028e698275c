// Kernels with and without races, of which ThreadSanitizer must see those that are there: run as `races NAME`
// (tests/test_emulated_races.py).
#include <stdio.h>

#include "cuda_runtime.h"

namespace {

struct Job {
    uint32_t* at;
};

void write_and_read(Job job, void (*meet)()) {
    if (threadIdx.x == 0) job.at[0] = 1;
    meet();
    if (threadIdx.x == 1) job.at[1] = job.at[0];
}

void nothing(Job job) {
    write_and_read(job, [] {});
}
void shuffle(Job job) {
    write_and_read(job, [] { __shfl_sync(~0u, 0, 0); });
}
void warp_barrier(Job job) {
    write_and_read(job, [] { __syncwarp(); });
}
void block_barrier(Job job) { write_and_read(job, __syncthreads); }
void blocks(Job job) {
    __syncthreads();
    if (threadIdx.x == 0) job.at[0] = 1;
    __syncthreads();
}
void atomics(Job job) {
    __syncthreads();
    atomicAdd(job.at, 1u);
}

}  // namespace

int main(int, char** arguments) {
    const struct {
        const char* name;
        void (*kernel)(Job);
        unsigned blocks, launches;
    } all[] = {{"nothing", nothing, 1, 1},
               {"shuffle", shuffle, 1, 1},
               {"blocks", blocks, 3, 1},
               {"warp barrier", warp_barrier, 1, 1},
               {"block barrier", block_barrier, 1, 1},
               {"launches", blocks, 1, 5},
               {"atomics", atomics, 3, 2}};
    uint32_t memory[2] = {};
    Job job = {memory};
    void* addresses[] = {&job};
    for (const auto& one : all) {
        if (strcmp(one.name, arguments[1]) != 0) continue;
        for (unsigned k = 0; k < one.launches; ++k)
            cudaLaunchKernel(one.kernel, dim3(one.blocks), dim3(32), addresses, 0, nullptr);
        puts("over");
    }
}
