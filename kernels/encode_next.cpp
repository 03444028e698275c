// A tensor's frames from step to step: levels for a variance, the codec with the shortest frames, lengths
// that stay put.
#include "frame.h"

namespace qsgd {
namespace {

bool can_code(uint8_t codec, uint32_t levels) { return is_codec(codec) && levels <= max_levels(codec); }

// At the first frame, ever more seldom after it, and when the levels are no longer what they were.
bool is_time_to_compare(const qsgd_history& history, uint32_t levels) {
    const uint32_t frames = history.frames;
    return !can_code(history.codec, levels) || (frames & (frames - 1)) == 0 || frames % 1024 == 0 ||
           levels / 2 > history.levels || levels < history.levels / 2;
}

// What one frame is made of.
struct Task {
    const void* gradient;
    void* frame;
    uint64_t capacity;
    uint32_t threads;
};

int encode(const qsgd_spec& spec, const Task& task, uint64_t& bytes) {
    return qsgd_encode(&spec, task.gradient, task.frame, task.capacity, task.threads, &bytes);
}

// Sets spec.codec to the one that makes the shortest frame; to another than the last only for a sixteenth
// less.
int choose_codec(qsgd_spec& spec, qsgd_history& history, const Task& task) {
    uint64_t least = UINT64_MAX;
    uint8_t best = 0;
    for (uint8_t codec = QSGD_CODEC_PACKED; codec <= QSGD_CODEC_RANS; ++codec) {
        if (!can_code(codec, spec.levels)) continue;
        spec.codec = codec;
        uint64_t bytes = 0;
        const int status =
            has_fixed_width(codec) ? qsgd_frame_bytes(&spec, &bytes) : encode(spec, task, bytes);
        if (status != QSGD_OK) return status;
        if (codec == history.codec) bytes -= bytes / 16;
        if (bytes < least) least = bytes, best = codec;
    }
    history.levels = spec.levels;
    history.codec = spec.codec = best;
    return QSGD_OK;
}

// Fills *task.frame's first `bytes`, a frame of a variable length, up to a length that stays put.
int pad(const Task& task, uint64_t last, uint64_t& bytes) {
    const uint64_t padded = qsgd_padded_bytes(bytes, last), most = task.capacity / 16 * 16;
    bytes = padded < most ? padded : most;
    return qsgd_pad(task.frame, task.capacity, bytes);
}

int encode_next(qsgd_spec spec, double variance, qsgd_history& history, const Task& task, uint64_t& bytes) {
    int status = QSGD_OK;
    if (variance != 0) status = qsgd_solve_levels(&spec, task.gradient, variance, task.threads, &spec.levels);
    if (status != QSGD_OK) return status;
    if (spec.codec != QSGD_CODEC_AUTO) {
        history.frames = 0;
        history.codec = spec.codec;
    } else {
        spec.codec = history.codec;
        if (is_time_to_compare(history, spec.levels)) status = choose_codec(spec, history, task);
        if (status != QSGD_OK) return status;
        ++history.frames;
    }
    status = encode(spec, task, bytes);
    if (status == QSGD_OK && !has_fixed_width(spec.codec)) status = pad(task, history.frame_bytes, bytes);
    if (status == QSGD_OK) history.frame_bytes = bytes;
    return status;
}

}  // namespace
}  // namespace qsgd

int qsgd_encode_next(const qsgd_spec* spec, double variance, qsgd_history* history, const void* gradient,
                     void* frame, uint64_t capacity, uint32_t threads, uint64_t* bytes) {
    if (!spec || !history || !bytes) return QSGD_BAD_ARGUMENT;
    return qsgd::encode_next(*spec, variance, *history, {gradient, frame, capacity, threads}, *bytes);
}
