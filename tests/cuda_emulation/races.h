// A launch as ThreadSanitizer sees it, if it is there: the threads of a block are threads that only barriers
// order. Shuffles and ballots move values but order no memory, as on a GPU, and nothing orders blocks: kApart
// of a launch have threads of their own, since one that has met others at a barrier knows what these did
// before.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned);
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned);
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);
}

namespace races {

constexpr size_t kPage = 4096;
constexpr unsigned kNoOrder = 1;  // that switching to another thread would make
constexpr unsigned kTurns = 256;  // blocks until clocks are used again
constexpr unsigned kApart = 3;    // blocks: as many as a launch has (QSGD_CUDA_MOST_BLOCKS)
constexpr unsigned kWarps = 32;

inline bool on() { return __tsan_acquire != nullptr; }

// What the threads of a warp or block that meet tell each other.
struct Clock {
    unsigned warp;
    bool of_block;
};

// Two for each: who comes to the next barrier must not tell those that have not left this one.
inline uint64_t clocks[kTurns][kWarps + 1][2];
inline uint64_t launch_clock, end_clock;
inline unsigned turn;
inline void* scheduler;

class Thread {
  public:
    // The scheduler is about to run it.
    void enter() {
        if (!on()) return;
        if (!self_) self_ = __tsan_create_fiber(0);
        __tsan_switch_to_fiber(self_, kNoOrder);
    }
    void begin() {
        met_[0] = met_[1] = 0;
        if (on()) __tsan_acquire(&launch_clock);
    }
    void arrive(Clock clock) {
        if (on()) __tsan_release(at(clock));
    }
    void depart(Clock clock) {
        if (on()) __tsan_acquire(at(clock));
        ++met_[clock.of_block];
    }
    void end() {
        if (on()) __tsan_release(&end_clock);
    }

  private:
    uint64_t* at(Clock clock) const {
        return &clocks[turn % kTurns][clock.of_block ? kWarps : clock.warp][met_[clock.of_block] % 2];
    }

    void* self_ = nullptr;
    unsigned met_[2] = {};
};

// A thread is about to go back to the scheduler.
inline void leave() {
    if (on()) __tsan_switch_to_fiber(scheduler, kNoOrder);
}

// Makes memory forget who used it: a block's shared memory is another one than the last block's.
inline void renew(void* memory, size_t bytes) {
    if (on()) mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

// A block begins.
inline void begin_block() {
    if (!on()) return;
    scheduler = __tsan_get_current_fiber();
    ++turn;
    __tsan_release(&launch_clock);
}

// The launch has ended: what comes next is behind all of its threads.
inline void end_launch() {
    if (on()) __tsan_acquire(&end_clock);
}

}  // namespace races
