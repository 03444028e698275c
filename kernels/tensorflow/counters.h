// What the ops of one compressor have done so far: hvd_qsgd.tensorflow's stats().
#pragma once

#include <stdint.h>

#include <atomic>
#include <chrono>

namespace qsgd_tensorflow {

enum Counter {
    kSteps,
    kTensors,
    kResized,
    kCoordinates,
    kBytesRaw,
    kBytesSent,
    kBytesGathered,
    kNanosecondsEncode,
    kNanosecondsDecode,
    kCounters
};

struct Counters {
    std::atomic<uint64_t> values[kCounters] = {};

    void add(Counter which, uint64_t amount) { values[which].fetch_add(amount, std::memory_order_relaxed); }
};

// Those of compressor number `id`, which live as long as the process.
Counters& counters_of(int64_t id);

// Adds the time until its end to a counter.
class Timer {
  public:
    Timer(Counters& counters, Counter which) : counters_(counters), which_(which) {}
    ~Timer() {
        const std::chrono::nanoseconds spent = std::chrono::steady_clock::now() - start_;
        counters_.add(which_, static_cast<uint64_t>(spent.count()));
    }

  private:
    Counters& counters_;
    const Counter which_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace qsgd_tensorflow
