// The token (qsgd.h): a sum or an average of it comes back as the factor, and everything else is told.
#include <math.h>

#include "qsgd.h"

namespace {

constexpr uint32_t kSignatureBits = QSGD_TOKEN_LENGTH - 2;
// Of the sum over the ranks: rounding stays well below, another reduction than a sum does not.
constexpr double kTolerance = 1e-3;

uint32_t bit(uint32_t signature, uint32_t k) { return signature >> k & 1; }

// FNV-1a over `n` bytes.
uint64_t hash(uint64_t state, const void* data, uint64_t n) {
    for (uint64_t k = 0; k < n; ++k)
        state = (state ^ static_cast<const uint8_t*>(data)[k]) * 0x100000001B3ull;
    return state;
}

}  // namespace

uint32_t qsgd_signature(const char* operation, uint32_t tensor, uint64_t count, uint32_t dtype) {
    uint64_t state = hash(0xCBF29CE484222325ull, operation, __builtin_strlen(operation));
    state = hash(state, &tensor, sizeof tensor);
    state = hash(state, &count, sizeof count);
    state = hash(state, &dtype, sizeof dtype);
    // Of FNV-1a, low bits know little of the last bytes' high bits, and high bits little of the last bytes.
    state = (state ^ (state >> 32)) * 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9ull;
    return static_cast<uint32_t>(state >> (64 - kSignatureBits));
}

void qsgd_token(uint32_t rank, uint32_t signature, float* token) {
    token[0] = rank == 0 ? 1.0f : 0.0f;
    token[1] = 1.0f;
    for (uint32_t k = 0; k < kSignatureBits; ++k) token[k + 2] = static_cast<float>(bit(signature, k));
}

int qsgd_token_factor(const float* reduced, uint64_t length, uint32_t size, uint32_t signature,
                      float* factor) {
    if (!reduced || !size || !factor) return QSGD_BAD_ARGUMENT;
    if (length != QSGD_TOKEN_LENGTH) return QSGD_PART_OF_TOKEN;
    // Comparisons are written so that NaN fails them, which infinity becomes when it is multiplied by a 0.
    const double one = reduced[0], everyone = reduced[1];
    if (!(fabs(everyone - size * one) <= kTolerance * fabs(everyone))) return QSGD_OTHER_REDUCTION;
    for (uint32_t k = 0; k < kSignatureBits; ++k) {
        const double expected = everyone * bit(signature, k);
        // One rank's bit is 1 / size of everyone.
        if (!(fabs(reduced[k + 2] - expected) <= 0.25 / size * fabs(everyone))) return QSGD_OTHER_MEANING;
    }
    *factor = reduced[0];
    return QSGD_OK;
}
