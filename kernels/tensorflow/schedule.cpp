#include "tensorflow/schedule.h"

#include <map>
#include <mutex>

namespace qsgd_tensorflow {
namespace {

std::mutex mutex;
std::map<int64_t, Signed> schedules;

}  // namespace

Signed schedule_of(int64_t compressor) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = schedules.find(compressor);
    return found == schedules.end() ? Signed{} : found->second;
}

}  // namespace qsgd_tensorflow

extern "C" QSGD_API void qsgd_tensorflow_schedule_by(qsgd_tensorflow::DecideLevels decide,
                                                     qsgd_tensorflow::TakeFrames arrived) {
    qsgd_tensorflow::scheduler = {decide, arrived};
}

// From now on tokens of compressor number `id` tell this of its schedule, and it hears of frames if it needs
// them.
extern "C" QSGD_API void qsgd_tensorflow_sign_schedule(int64_t id, const char* signature, int needs_frames) {
    const std::lock_guard<std::mutex> lock(qsgd_tensorflow::mutex);
    qsgd_tensorflow::schedules[id] = {signature, needs_frames != 0};
}
