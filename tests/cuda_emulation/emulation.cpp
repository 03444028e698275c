// Fibers for the threads of a block, and what they wait for.
#undef _FORTIFY_SOURCE  // its longjmp would take a change of stacks for a mistake
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(from, bytes) __asan_poison_memory_region(from, bytes)
#define UNPOISON(from, bytes) __asan_unpoison_memory_region(from, bytes)
#else
#define POISON(from, bytes)
#define UNPOISON(from, bytes)
#endif

constexpr size_t kMostShared = 48 << 10;  // without asking for more

alignas(races::kPage) unsigned char qsgd_shared_memory[kMostShared];  // as the kernels declare it

namespace emulation {

Thread* current = nullptr;

namespace {

constexpr unsigned kMostThreads = 1024;
constexpr size_t kStack = 256 << 10;

struct Fiber : Thread {
    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t begin;
    jmp_buf here;
    races::Thread races;
    bool started, done;
};

jmp_buf scheduler;
void (*body)(void**);
void** arguments;

[[noreturn]] void fail(const Fiber& f, const char* what) {
    fprintf(stderr, "CUDA emulation: thread %u of block %u %s\n", f.thread.x, f.block.x, what);
    abort();
}

void begin_fiber() {
    Fiber& self = *static_cast<Fiber*>(current);
    self.races.begin();
    body(arguments);
    self.races.end();
    self.done = true;
    races::leave();
    _longjmp(scheduler, 1);
}

void resume(Fiber& fiber) {
    current = &fiber;
    fiber.races.enter();
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.begin);
}

bool waits(const Fiber& f) { return f.waits_for != Operation::kNone; }

// The lanes of a warp.
struct Warp {
    Fiber* const* lanes;
    uint32_t count;

    // Lets the lanes that wait with this one go on if all are there.
    bool release(const Fiber& first) const {
        const uint32_t mask = first.mask;
        if (!(mask >> first.thread.x % 32 & 1)) fail(first, "waits with a mask that it is not in");
        uint64_t values[32], ballot = 0;
        for (uint32_t lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            if (lane >= count || lanes[lane]->done) fail(first, "waits for a lane that has ended");
            const Fiber& other = *lanes[lane];
            if (!waits(other) || other.waits_for == Operation::kBlockBarrier) return false;
            if (other.waits_for != first.waits_for || other.mask != mask)
                fail(first, "and another lane of its warp wait for different things");
            values[lane] = other.value;
            ballot |= (other.value & 1) << lane;
        }
        for (uint32_t lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            Fiber& other = *lanes[lane];
            if (other.waits_for == Operation::kBallot) other.value = ballot;
            if (other.waits_for == Operation::kShuffle) {
                if (!(mask >> other.source & 1)) fail(other, "reads a lane that does not take part");
                other.value = values[other.source];
            }
            other.waits_for = Operation::kNone;
        }
        return true;
    }
};

class Block {
  public:
    Block(const std::unique_ptr<Fiber>* pool, unsigned threads, std::mt19937& random) {
        for (unsigned t = 0; t < threads; ++t) fibers_.push_back(pool[t].get());
        order_ = fibers_;
        std::shuffle(order_.begin(), order_.end(), random);
    }

    void run(unsigned number, dim3 grid) {
        for (unsigned t = 0; t < fibers_.size(); ++t) prepare(*fibers_[t], t, number, grid);
        for (bool moved = true; moved;) {
            moved = false;
            for (Fiber* fiber : order_) {
                if (fiber->done || waits(*fiber)) continue;
                resume(*fiber);
                moved = true;
            }
            moved |= release_warps() || release_block();
        }
        for (const Fiber* fiber : fibers_)
            if (!fiber->done) fail(*fiber, "waits for threads that do not come");
    }

  private:
    void prepare(Fiber& f, unsigned thread, unsigned block, dim3 grid) {
        static_cast<Thread&>(f) = {};
        f.thread.x = thread, f.block.x = block, f.grid_size = grid;
        f.thread.y = f.thread.z = f.block.y = f.block.z = 0;
        f.block_size.x = static_cast<unsigned>(fibers_.size());
        f.started = f.done = false;
        getcontext(&f.begin);
        f.begin.uc_stack.ss_sp = f.stack.get();
        f.begin.uc_stack.ss_size = kStack;
        f.begin.uc_link = nullptr;
        makecontext(&f.begin, begin_fiber, 0);
    }

    bool release_warps() {
        bool any = false;
        for (size_t first = 0; first < fibers_.size(); first += 32) {
            const Warp warp = {&fibers_[first],
                               static_cast<uint32_t>(std::min<size_t>(32, fibers_.size() - first))};
            for (uint32_t lane = 0; lane < warp.count; ++lane) {
                const Fiber& f = *warp.lanes[lane];
                if (!f.done && waits(f) && f.waits_for != Operation::kBlockBarrier) any |= warp.release(f);
            }
        }
        return any;
    }

    bool release_block() {
        bool any = false, all = true;
        for (const Fiber* f : fibers_) {
            const bool at_barrier = !f->done && f->waits_for == Operation::kBlockBarrier;
            any |= at_barrier, all &= at_barrier;
        }
        if (!any || !all) return false;
        for (Fiber* f : fibers_) f->waits_for = Operation::kNone;
        return true;
    }

    std::vector<Fiber*> fibers_, order_;
};

std::mt19937& random_numbers() {
    const char* seed = getenv("HVD_QSGD_CUDA_EMULATION_SEED");
    static std::mt19937 random(seed ? static_cast<unsigned>(atoi(seed)) : 1);
    return random;
}

}  // namespace

uint64_t meet(Operation operation, uint32_t mask, uint64_t value, uint32_t source) {
    Fiber& self = *static_cast<Fiber*>(current);
    self.waits_for = operation, self.mask = mask, self.value = value, self.source = source;
    const bool barrier = operation == Operation::kBlockBarrier || operation == Operation::kWarpBarrier;
    const races::Clock clock = {self.thread.x / 32, operation == Operation::kBlockBarrier};
    if (barrier) self.races.arrive(clock);
    races::leave();
    if (_setjmp(self.here) == 0) _longjmp(scheduler, 1);
    if (barrier) self.races.depart(clock);
    return self.value;
}

cudaError_t run(dim3 grid, dim3 block, size_t shared, void (*body_)(void**), void** arguments_) {
    static std::vector<std::unique_ptr<Fiber>> pool;
    static const bool empty = getenv("HVD_QSGD_CUDA_EMULATION_EMPTY") != nullptr;  // to measure the host
    if (!grid.x || grid.x > INT32_MAX || !block.x || block.x > kMostThreads)
        return cudaErrorInvalidConfiguration;
    if (shared > kMostShared) return cudaErrorInvalidValue;
    if (empty) return cudaSuccess;
    while (pool.size() < races::kApart * block.x) pool.emplace_back(new Fiber);
    body = body_, arguments = arguments_;
    std::vector<unsigned> blocks(grid.x);
    for (unsigned k = 0; k < grid.x; ++k) blocks[k] = k;
    std::shuffle(blocks.begin(), blocks.end(), random_numbers());
    for (unsigned turn = 0; turn < grid.x; ++turn) {
        Block threads(&pool[turn % races::kApart * block.x], block.x, random_numbers());
        races::renew(qsgd_shared_memory, kMostShared);
        UNPOISON(qsgd_shared_memory, kMostShared);
        memset(qsgd_shared_memory, 0xA5, kMostShared);
        POISON(qsgd_shared_memory + shared, kMostShared - shared);
        races::begin_block();
        threads.run(blocks[turn], grid);
    }
    races::end_launch();
    return cudaSuccess;
}

}  // namespace emulation
