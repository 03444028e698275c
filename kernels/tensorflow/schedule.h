// Schedules decide levels in Python, hvd_qsgd/tensorflow_schedule.py, which the ops call while a graph runs.
#pragma once

#include <stdint.h>

#include <string>

#include "qsgd.h"

namespace qsgd_tensorflow {

// Levels of a tensor's frame in this run of its graph; 0: they cannot be decided.
using DecideLevels = uint32_t (*)(int64_t compressor, const char* tensor, uint64_t elements, int64_t run);

// All ranks' frames of the tensor, which were checked, are here. Returns 0 if its step is over already.
using TakeFrames = int (*)(int64_t compressor, const char* tensor, int64_t run, const void* frames,
                           uint32_t ranks);

struct Scheduler {
    DecideLevels decide = nullptr;
    TakeFrames arrived = nullptr;
};

// Set before the first op is made.
inline Scheduler scheduler;

// What the ops know of a compressor's schedule.
struct Signed {
    std::string signature;  // what must be the same on all ranks; nothing, if there is no schedule
    bool needs_frames = false;
};

Signed schedule_of(int64_t compressor);

constexpr const char* kTwoSteps =
    "gradients of two steps are on their way at the same time, so that no schedule can tell them apart: "
    "reduce "
    "all gradients of a step in one tf.function";

}  // namespace qsgd_tensorflow
