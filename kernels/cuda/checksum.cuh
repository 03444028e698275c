// The frame's checksum on the device: terms that threads add up, in any order (docs/wire_format.md, section
// 7).
#pragma once

#include "cuda/launch.cuh"

namespace qsgd {

constexpr uint64_t kHeaderWords = QSGD_HEADER_BYTES / 8;

__device__ __forceinline__ uint64_t* word_of(void* frame, uint64_t k) {
    return static_cast<uint64_t*>(frame) + k;
}
__device__ __forceinline__ const uint64_t* word_of(const void* frame, uint64_t k) {
    return static_cast<const uint64_t*>(frame) + k;
}

// Writes a word of the frame; returns its term.
__device__ __forceinline__ uint64_t put_word(void* frame, uint64_t k, uint64_t word) {
    *word_of(frame, k) = word;
    return checksum_term(word, k);
}

// This thread's part of the terms of words [first, last), which the threads of a set share.
__device__ inline uint64_t terms_of(const void* frame, uint64_t first, uint64_t last, uint64_t thread,
                                    uint64_t threads) {
    uint64_t sum = 0;
    for (uint64_t k = first + thread; k < last; k += threads) sum += checksum_term(*word_of(frame, k), k);
    return sum;
}

__device__ __forceinline__ uint64_t thread_of_grid() { return part_of_grid().thread(); }
__device__ __forceinline__ uint64_t threads_of_grid() { return part_of_grid().threads(); }

// The terms of a whole header, but for the checksum itself.
__device__ inline uint64_t header_terms(const Header& header) {
    uint64_t words[kHeaderWords], sum = 0;
    memcpy(words, &header, sizeof words);
    for (uint64_t k = 0; k < kChecksumWord; ++k) sum += checksum_term(words[k], k);
    return sum;
}

}  // namespace qsgd
