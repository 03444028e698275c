// Blocks of Elias' strings from a gradient, a few at a time so that their codes stay in the first-level
// cache.
#pragma once

#include "cpu/elias_encode.h"
#include "cpu/encode.h"

namespace qsgd {
namespace {

// Blocks of stretches [first, last), one after the other, to `out`; returns their end.
uint8_t* encode_elias(const EncodeJob& job, const EliasJob& elias, uint64_t first, uint64_t last,
                      const EliasScratch& scratch, uint8_t* out) {
    const auto encode_block = job.spec.codec == QSGD_CODEC_ELIAS_SPARSE ? encode_sparse : encode_dense;
    const uint64_t piece = elias_piece(elias.block), end = last * kStretch;
    BlockEncoder quantizer(job, first * kStretch);
    uint8_t* length = elias.lengths + 2 * (first * kStretch / elias.block);
    for (uint64_t begin = first * kStretch; begin < end && begin < job.spec.count; begin += piece) {
        const uint64_t left = job.spec.count - begin, elements = left < piece ? left : piece;
        quantizer.codes<true>(begin, begin + elements, scratch.codes);
        for (uint64_t at = 0; at < elements; at += elias.block, length += 2) {
            const uint64_t own = elements - at < elias.block ? elements - at : elias.block;
            const uint64_t bytes = encode_block(scratch.codes + at, own, scratch.block);
            const auto stored = static_cast<uint16_t>(bytes);
            memcpy(length, &stored, sizeof stored);
            memcpy(out, scratch.block, bytes);
            out += bytes;
        }
    }
    return out;
}

}  // namespace
}  // namespace qsgd
