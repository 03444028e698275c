// What frames have in common whose length only the encoder finds: made in two steps, by way of scratch
// memory.
#pragma once

#include <stddef.h>

#include "cuda/encode.cuh"

namespace qsgd {

constexpr uint32_t kMeasuring = 1024;                                // threads
constexpr uint64_t kLengthWord = offsetof(Header, frame_bytes) / 8;  // of the header

// Places in scratch memory, one after the other.
class Places {
  public:
    uint64_t bytes = 0;

  protected:
    uint64_t take(uint64_t size) {
        const uint64_t at = bytes;
        bytes += ceil_div(size, 8) * 8;
        return at;
    }
};

uint64_t rans_scratch_bytes(const qsgd_spec& spec);
uint64_t elias_scratch_bytes(const qsgd_spec& spec);
inline uint64_t variable_scratch_bytes(const qsgd_spec& spec) {
    return is_elias(spec.codec) ? elias_scratch_bytes(spec) : rans_scratch_bytes(spec);
}

// All but the frame, and its length.
cudaError_t begin_rans_frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw,
                             void* scratch, uint64_t* frame_bytes, void* stream);
cudaError_t begin_elias_frame(const qsgd_spec& spec, const void* gradient, const qsgd_draw* draw,
                              void* scratch, uint64_t* frame_bytes, void* stream);

// The frame, so many bytes of it.
cudaError_t end_rans_frame(const qsgd_spec& spec, void* scratch, uint64_t* out, uint64_t bytes, void* stream);
cudaError_t end_elias_frame(const qsgd_spec& spec, void* scratch, uint64_t* out, uint64_t bytes,
                            void* stream);

// The checksum, from parts that so many blocks have found.
cudaError_t seal_frame(const uint64_t* terms, uint32_t blocks, uint64_t* out, void* stream);

}  // namespace qsgd
