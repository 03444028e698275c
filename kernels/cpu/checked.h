// Reading a header and the checksum of parts of a frame, on the CPU.
#pragma once

#include "cpu/isa.h"

namespace qsgd {
namespace {

// The header of a frame that may start at any address; checks 1 to 3.
inline int read_header(const uint8_t* frame, uint64_t bytes, Header& h) {
    if (bytes < sizeof h) return QSGD_TRUNCATED;
    memcpy(&h, frame, sizeof h);
    return check_header(h, bytes);
}

// Terms of the frame's bytes [begin, end), multiples of 8, without the checksum's own word.
inline uint64_t checksum_terms(const uint8_t* frame, uint64_t begin, uint64_t end) {
    const auto part = [&](uint64_t first, uint64_t last) {
        return first < last ? kernels().checksum(frame + 8 * first, first, last - first) : 0;
    };
    if (begin / 8 > kChecksumWord) return part(begin / 8, end / 8);
    return part(begin / 8, kChecksumWord) + part(kChecksumWord + 1, end / 8);
}

inline bool scales_possible(const uint8_t* frame, uint64_t buckets) {
    uint32_t impossible = 0;
    for (uint64_t k = 0; k < buckets; ++k) {
        uint32_t bits;
        memcpy(&bits, frame + QSGD_HEADER_BYTES + 4 * k, sizeof bits);
        impossible |= !is_scale(bits);
    }
    return !impossible;
}

inline void write_checksum(uint8_t* frame, uint64_t checksum) {
    memcpy(frame + 8 * kChecksumWord, &checksum, sizeof checksum);
}

}  // namespace
}  // namespace qsgd
