// What a status means, in words, and error frames, which carry words: one definition for every frontend.
#include <stdio.h>

#include "frame.h"

namespace qsgd {
namespace {

struct Words {
    int status;
    const char* text;
};

constexpr Words kWords[] = {
    {QSGD_OK, "is in order"},
    {QSGD_BAD_ARGUMENT, "an argument is out of range"},
    {QSGD_FRAME_TOO_SMALL, "the frame's buffer is too small"},
    {QSGD_OUT_OF_MEMORY, "memory or threads ran out"},
    {QSGD_CUDA_ERROR, "a CUDA call failed"},
    {QSGD_TRUNCATED, "is cut short"},
    {QSGD_BAD_MAGIC, "does not begin with the bytes 'QSGD'"},
    {QSGD_BAD_VERSION, "is of a format version that this hvd_qsgd does not know"},
    {QSGD_BAD_CODEC, "has an unknown codec"},
    {QSGD_BAD_NORM, "has an unknown norm"},
    {QSGD_BAD_DTYPE, "has an unknown dtype"},
    {QSGD_BAD_RESERVED, "has reserved bits set"},
    {QSGD_BAD_COUNT, "claims an impossible number of elements"},
    {QSGD_BAD_BUCKET_SIZE, "claims an impossible bucket size"},
    {QSGD_BAD_LEVELS, "claims levels that its codec does not have"},
    {QSGD_BAD_LENGTH, "claims a length that does not fit its other fields"},
    {QSGD_BAD_PAYLOAD, "has a payload that no encoder writes"},
    {QSGD_BAD_SCALE, "has a scale that no encoder writes"},
    {QSGD_ERROR_FRAME, "is an error frame"},
    {QSGD_OTHER_COUNT, "has another number of elements than the tensor here"},
    {QSGD_OTHER_DTYPE, "has another dtype than the tensor here"},
    {QSGD_OTHER_TENSOR, "belongs to another tensor"},
    {QSGD_OTHER_STEP, "belongs to another step"},
    {QSGD_OTHER_RANK, "comes from another rank than its position says"},
    {QSGD_BAD_CHECKSUM, "is damaged: its checksum does not match"},
    {QSGD_TRAILING_BYTES, "is followed by bytes that belong to no frame"},
    {QSGD_PART_OF_TOKEN, "comes back in another length"},
    {QSGD_OTHER_REDUCTION, "is not a sum or an average over the ranks"},
    {QSGD_OTHER_MEANING, "is not about the same tensor on all ranks"},
};

bool disagrees(int status) { return status >= QSGD_OTHER_COUNT && status <= QSGD_OTHER_RANK; }

const char* advice(int status) {
    if (status == QSGD_OTHER_STEP)
        return "let all ranks load the same state_dict(), for example "
               "hvd.broadcast_object(compressor.state_dict())";
    if (disagrees(status))
        return "every rank must reduce the same tensors in the same order: check the model, or (PyTorch) "
               "pass "
               "named_parameters=";
    if (status == QSGD_BAD_VERSION) return "install the same hvd_qsgd on every rank";
    return "the bytes were changed on their way or never were a frame of hvd_qsgd";
}

const char* dtype_name(uint32_t dtype) {
    constexpr const char* kNames[] = {"unknown", "float32", "float16", "bfloat16"};
    return kNames[dtype <= QSGD_BFLOAT16 ? dtype : 0];
}

// " (4 there, 3 here)", or nothing where nothing is compared.
void difference(int status, const Header& there, const qsgd_expectation& here, char* text, size_t capacity) {
    const unsigned long long counts[] = {there.count, here.count};
    switch (status) {
        case QSGD_OTHER_COUNT:
            snprintf(text, capacity, " (%llu there, %llu here)", counts[0], counts[1]);
            break;
        case QSGD_OTHER_DTYPE:
            snprintf(text, capacity, " (%s there, %s here)", dtype_name(there.dtype), dtype_name(here.dtype));
            break;
        case QSGD_OTHER_TENSOR:
            snprintf(text, capacity, " (id %#010x there, id %#010x here)", there.tensor, here.tensor);
            break;
        case QSGD_OTHER_STEP:
            snprintf(text, capacity, " (%u there, %u here)", there.step, here.step);
            break;
        case QSGD_OTHER_RANK:
            snprintf(text, capacity, " (%u there, its position here)", there.rank);
            break;
        default:
            text[0] = '\0';
    }
}

// The header of frame number `index` and its address; those before it have been checked.
const char* find(const char* frames, uint64_t bytes, uint32_t index, Header& h) {
    const char* const end = frames + bytes;
    for (h = {}; frames + sizeof h <= end; frames += h.frame_bytes) {
        memcpy(&h, frames, sizeof h);
        if (index-- == 0 || h.frame_bytes > static_cast<uint64_t>(end - frames)) break;
    }
    return frames;
}

}  // namespace
}  // namespace qsgd

using namespace qsgd;

const char* qsgd_status_text(int status) {
    for (const Words& words : kWords)
        if (words.status == status) return words.text;
    return "failed in an unknown way";
}

void qsgd_explain(int status, const void* frames, uint64_t bytes, uint32_t bad_frame,
                  const qsgd_expectation* expected, const char* what, char* text, uint64_t capacity) {
    Header h;
    const char* const frame = find(static_cast<const char*>(frames), bytes, bad_frame, h);
    const uint32_t rank = expected->first_rank + bad_frame;
    if (status == QSGD_ERROR_FRAME) {
        const int length = static_cast<int>(h.coded_bytes - sizeof h);
        snprintf(text, capacity, "rank %u could not encode %s: %.*s", rank, what, length, frame + sizeof h);
    } else if (status < QSGD_TRUNCATED) {
        snprintf(text, capacity, "%s could not be decoded: %s", what, qsgd_status_text(status));
    } else {
        char compared[80];
        difference(status, h, *expected, compared, sizeof compared);
        snprintf(text, capacity, "%s from rank %u %s%s; %s", what, rank, qsgd_status_text(status), compared,
                 advice(status));
    }
}

void qsgd_explain_token(int status, uint64_t length, uint32_t size, const char* what, char* text,
                        uint64_t capacity) {
    if (status == QSGD_PART_OF_TOKEN)
        snprintf(
            text, capacity,
            "the reduction of %s returned %llu token entries instead of %d: QSGD works with allreduce and "
            "grouped_allreduce, not with reducescatter",
            what, static_cast<unsigned long long>(length), QSGD_TOKEN_LENGTH);
    else if (status == QSGD_OTHER_REDUCTION)
        snprintf(
            text, capacity,
            "the reduction of %s is not a sum or an average over the %u ranks that exchange its frames: use "
            "op=hvd.Average or op=hvd.Sum (Adasum, Min, Max and Product do not work on quantized gradients), "
            "and give QSGD(process_set=) the same process set as the optimizer or the allreduce",
            what, size);
    else
        snprintf(
            text, capacity,
            "the ranks do not mean the same by %s: its size, dtype, place in the step, step or schedule "
            "differs between ranks. If some parameters go unused on some ranks, pass (PyTorch) "
            "QSGD(named_parameters=model.named_parameters()); after a restart, let all ranks load the same "
            "compressor.state_dict()",
            what);
}

int qsgd_error_frame(const qsgd_spec* spec, const char* message, void* frame, uint64_t capacity,
                     uint64_t* bytes) {
    if (!spec || !message || !frame || !bytes) return QSGD_BAD_ARGUMENT;
    uint64_t length = strlen(message);
    if (length > kMaxMessage)  // cut between characters
        for (length = kMaxMessage; length > 0 && (message[length] & 0xC0) == 0x80;) --length;
    Header h = {};
    h.magic = kMagic;
    h.version = kVersion;
    h.codec = QSGD_CODEC_ERROR;
    h.dtype = spec->dtype;
    h.count = spec->count;
    h.rank = spec->rank;
    h.tensor = spec->tensor;
    h.step = spec->step;
    h.coded_bytes = sizeof h + length;
    h.frame_bytes = *bytes = roundup16(h.coded_bytes);
    if (capacity < h.frame_bytes) return QSGD_FRAME_TOO_SMALL;
    auto* const out = static_cast<char*>(frame);
    memset(out, 0, h.frame_bytes);
    memcpy(out, &h, sizeof h);
    memcpy(out + sizeof h, message, length);
    return qsgd_seal(frame, h.frame_bytes);
}
