#include "tensorflow/counters.h"

#include <map>
#include <mutex>

#include "qsgd.h"

namespace qsgd_tensorflow {

Counters& counters_of(int64_t id) {
    static std::mutex mutex;
    static std::map<int64_t, Counters> all;  // whose elements never move
    const std::lock_guard<std::mutex> lock(mutex);
    return all[id];
}

}  // namespace qsgd_tensorflow

// Read compressor `id`'s counters, in the order of enum Counter, and set them to zero if `reset`.
extern "C" QSGD_API void qsgd_tensorflow_counters(int64_t id, uint64_t* values, int reset) {
    auto& counters = qsgd_tensorflow::counters_of(id);
    for (int k = 0; k < qsgd_tensorflow::kCounters; ++k)
        values[k] = reset ? counters.values[k].exchange(0) : counters.values[k].load();
}
