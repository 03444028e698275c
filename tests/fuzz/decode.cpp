// Fuzz target for every decoder: bytes as frames, as they come and with a checksum made right, in buffers
// that end where the sanitizer looks. libFuzzer's interface; run.cpp drives it where there is no libFuzzer.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>

#include "frame.h"

namespace {

constexpr uint64_t kMostElements = 1 << 17;  // so that an execution stays short

// A copy that ends at its memory's end, at an odd address if `shift` is odd.
struct Exact {
    uint8_t* const memory;
    uint8_t* const data;
    Exact(const uint8_t* from, size_t size, size_t shift)
        : memory(static_cast<uint8_t*>(malloc(size + shift + 1))), data(memory + 1 + shift) {
        if (size) memcpy(data, from, size);
    }
    ~Exact() { free(memory); }
    Exact(const Exact&) = delete;
    Exact& operator=(const Exact&) = delete;
};

void seal(uint8_t* frame, size_t size) {
    qsgd::Header h;
    if (size < sizeof h) return;
    memcpy(&h, frame, sizeof h);
    if (h.frame_bytes <= size && h.frame_bytes % 8 == 0) qsgd_seal(frame, h.frame_bytes);
}

// What error feedback does with a frame.
void subtract(const uint8_t* frame, size_t size, const qsgd_expectation& expected) {
    auto* const residual = static_cast<float*>(calloc(expected.count + 1, sizeof(float)));
    if (qsgd_subtract_frame(frame, size, &expected, residual, 1) == QSGD_OK)
        for (uint64_t i = 0; i < expected.count; ++i)
            if (!std::isfinite(residual[i])) abort();
    free(residual);
}

void decode(const uint8_t* frames, size_t size, uint32_t count) {
    qsgd::Header h = {};
    if (size >= sizeof h) memcpy(&h, frames, sizeof h);
    if (h.count > kMostElements) h.count = 1000;
    const qsgd_expectation expected = {h.count, h.tensor, h.step, h.dtype, h.rank};
    const size_t item = h.dtype == QSGD_FLOAT32 ? 4 : 2;
    auto* const sum = static_cast<uint8_t*>(malloc(item * h.count + 1));
    uint32_t bad_frame = 0;
    const int status = qsgd_decode_sum(frames, size, count, &expected, 0.5f, sum, 1, &bad_frame);
    if (status == QSGD_OK && bad_frame > count) abort();
    if (status >= QSGD_TRUNCATED && bad_frame >= count) abort();
    subtract(frames, size, expected);
    char text[QSGD_MAX_EXPLANATION];
    qsgd_explain(status, frames, size, bad_frame, &expected, "it", text, sizeof text);
    free(sum);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const uint8_t how =
        data[0];  // bit 0: a right checksum, 1: two frames of one rank after the other, 2: an odd address
    const Exact frame(data + 1, size - 1, how >> 2 & 1);
    if (how & 1) seal(frame.data, size - 1);
    uint64_t bytes = 0;
    qsgd_check(frame.data, size - 1, &bytes);
    if (!(how & 2)) {
        decode(frame.data, size - 1, 1);
        return 0;
    }
    // Its like from the next rank follows.
    auto* const twice = static_cast<uint8_t*>(malloc(2 * size));
    memcpy(twice, frame.data, size - 1);
    memcpy(twice + size - 1, frame.data, size - 1);
    if (size - 1 >= sizeof(qsgd::Header)) {
        ++twice[size - 1 + offsetof(qsgd::Header, rank)];
        seal(twice + size - 1, size - 1);
    }
    decode(twice, 2 * (size - 1), 2);
    free(twice);
    return 0;
}
