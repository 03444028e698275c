// Splitting a range over threads that live for one call: no pool to initialize, to spin or to survive a fork.
#pragma once

#ifdef __x86_64__
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

#include <cstdint>
#include <thread>
#include <vector>

namespace qsgd {

// The default floating-point environment for a scope: frameworks flush subnormals to zero in their threads.
#ifdef __x86_64__
// Of SSE alone: fegetenv and fesetenv care for x87 as well, and take 200 ns.
using FloatEnvironment = unsigned;
inline FloatEnvironment float_environment() { return _mm_getcsr(); }
inline void set_float_environment(FloatEnvironment environment) { _mm_setcsr(environment); }
inline void set_default_float_environment() { _mm_setcsr(0x1F80); }
#else
using FloatEnvironment = std::fenv_t;
inline FloatEnvironment float_environment() {
    std::fenv_t environment;
    std::fegetenv(&environment);
    return environment;
}
inline void set_float_environment(const FloatEnvironment& environment) { std::fesetenv(&environment); }
inline void set_default_float_environment() { std::fesetenv(FE_DFL_ENV); }
#endif

class DefaultFloatEnvironment {
  public:
    DefaultFloatEnvironment() : saved_(float_environment()) { set_default_float_environment(); }
    ~DefaultFloatEnvironment() { set_float_environment(saved_); }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

  private:
    const FloatEnvironment saved_;
};

// Threads worth their start, about 30 us each, for `elements` of work.
inline uint32_t useful_threads(uint32_t allowed, uint64_t elements) {
    constexpr uint64_t kElementsPerThread = 1 << 20;
    const uint64_t useful = elements / kElementsPerThread;
    if (useful <= 1 || allowed <= 1) return 1;
    return useful < allowed ? static_cast<uint32_t>(useful) : allowed;
}

// Calls body(worker, begin, end) for `threads` even parts of [0, count). The body must not throw.
template <class Body>
void parallel(uint32_t threads, uint64_t count, Body body) {
    const auto part = [&](uint32_t worker) {
        const DefaultFloatEnvironment environment;
        const uint64_t each = count / threads, more = count % threads;
        const uint64_t begin = worker * each + (worker < more ? worker : more);
        body(worker, begin, begin + each + (worker < more ? 1 : 0));
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    uint32_t started = 1;
    try {
        for (; started < threads; ++started) others.emplace_back(part, started);
    } catch (const std::system_error&) {
        // No more threads to be had: this one does what they would have done.
    }
    part(0);
    for (uint32_t worker = started; worker < threads; ++worker) part(worker);
    for (std::thread& other : others) other.join();
}

}  // namespace qsgd
