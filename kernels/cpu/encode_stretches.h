// Stretches of variable-length payloads by several threads.
#pragma once

#include <vector>

#include "cpu/threads.h"
#include "frame.h"

namespace qsgd {
namespace {

// Calls encode(worker, first, last, out) -> end for ranges of all stretches, none of which needs more than
// `most` bytes, and puts what they wrote one after the other, from `out` on. Returns the end.
template <class Encode>
uint8_t* encode_stretches(uint32_t threads, uint64_t count, uint64_t most, uint8_t* out, Encode encode) {
    std::vector<uint8_t*> begins(threads), ends(threads);
    parallel(threads, ceil_div(count, kStretch), [&](uint32_t worker, uint64_t first, uint64_t last) {
        begins[worker] = out + most * first;
        ends[worker] = first < last ? encode(worker, first, last, begins[worker]) : begins[worker];
    });
    for (uint32_t t = 0; t < threads; ++t) {
        const auto bytes = static_cast<uint64_t>(ends[t] - begins[t]);
        memmove(out, begins[t], bytes);
        out += bytes;
    }
    return out;
}

}  // namespace
}  // namespace qsgd
