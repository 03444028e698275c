#include "tensorflow/schedule.h"

#include <map>
#include <mutex>

namespace qsgd_tensorflow {
namespace {

std::mutex mutex;
std::map<int64_t, std::string> signatures;

}  // namespace

std::string schedule_signature(int64_t compressor) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = signatures.find(compressor);
    return found == signatures.end() ? "" : found->second;
}

}  // namespace qsgd_tensorflow

extern "C" QSGD_API void qsgd_tensorflow_schedule_by(qsgd_tensorflow::DecideLevels decide,
                                                     qsgd_tensorflow::TakeFrames arrived) {
    qsgd_tensorflow::scheduler = {decide, arrived};
}

// From now on tokens of compressor number `id` tell this of its schedule.
extern "C" QSGD_API void qsgd_tensorflow_sign_schedule(int64_t id, const char* signature) {
    const std::lock_guard<std::mutex> lock(qsgd_tensorflow::mutex);
    qsgd_tensorflow::signatures[id] = signature;
}
