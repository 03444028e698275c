// An Elias payload: the blocks' lengths, and the blocks by several threads.
#pragma once

#include <memory>

#include "cpu/encode_stretches.h"
#include "cpu/isa.h"

namespace qsgd {
namespace {

inline uint64_t most_elias_bytes(const qsgd_spec& s) {
    return elias_bound(s.codec == QSGD_CODEC_ELIAS_SPARSE, s.levels, s.count, elias_block(s));
}

// Scratch memory of one thread.
struct EliasMemory {
    std::unique_ptr<int16_t[]> codes;
    std::unique_ptr<uint8_t[]> block;
    EliasMemory(uint64_t elements) : codes(new int16_t[elements]), block(new uint8_t[kEliasScratchBytes]) {}
};

// Writes the payload; returns its end.
inline uint8_t* encode_elias_payload(const EncodeJob& job, uint32_t threads) {
    const qsgd_spec& spec = job.spec;
    uint8_t* const head = job.frame + job.at.payload;
    if (spec.count == 0) return head;
    const EliasJob elias = {elias_block(spec), head + kEliasHead};
    const uint32_t words[] = {elias.block, 0};
    memcpy(head, words, sizeof words);

    const bool sparse = spec.codec == QSGD_CODEC_ELIAS_SPARSE;
    const uint64_t most = kStretch / elias.block * elias_block_bound(sparse, spec.levels, elias.block);
    std::vector<EliasMemory> memory;
    for (uint32_t t = 0; t < threads; ++t) memory.emplace_back(elias_piece(elias.block));
    uint8_t* const blocks = elias.lengths + 2 * ceil_div(spec.count, elias.block);
    return encode_stretches(
        threads, spec.count, most, blocks, [&](uint32_t worker, uint64_t first, uint64_t last, uint8_t* out) {
            const EliasMemory& mine = memory[worker];
            return kernels().encode_elias(job, elias, first, last, {mine.codes.get(), mine.block.get()}, out);
        });
}

}  // namespace
}  // namespace qsgd
