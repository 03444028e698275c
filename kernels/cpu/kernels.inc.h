// The table of range functions for the instruction set whose Lanes was included before.
#include "cpu/decode.h"
#include "cpu/encode.h"

namespace qsgd {
namespace {

uint64_t encode_blocks(const EncodeJob& job, uint64_t first, uint64_t last) {
    switch (job.spec.dtype) {
        case QSGD_FLOAT16:
            return encode_blocks_of<Float16>(job, first, last);
        case QSGD_BFLOAT16:
            return encode_blocks_of<Bfloat16>(job, first, last);
        default:
            return encode_blocks_of<Float32>(job, first, last);
    }
}

void sum_blocks(const EncodeJob& job, uint64_t first, uint64_t last, double* sums, uint32_t* largest) {
    switch (job.spec.dtype) {
        case QSGD_FLOAT16:
            return sum_blocks_of<Float16>(job, first, last, sums, largest);
        case QSGD_BFLOAT16:
            return sum_blocks_of<Bfloat16>(job, first, last, sums, largest);
        default:
            return sum_blocks_of<Float32>(job, first, last, sums, largest);
    }
}

double bucket_squares(const EncodeJob& job, uint64_t first, uint64_t last) {
    switch (job.spec.dtype) {
        case QSGD_FLOAT16:
            return bucket_squares_of<Float16>(job, first, last);
        case QSGD_BFLOAT16:
            return bucket_squares_of<Bfloat16>(job, first, last);
        default:
            return bucket_squares_of<Float32>(job, first, last);
    }
}

uint64_t decode_blocks(const DecodeJob& job, uint64_t first, uint64_t last, float* scratch) {
    switch (job.dtype) {
        case QSGD_FLOAT16:
            return decode_blocks_of<Float16>(job, first, last, scratch);
        case QSGD_BFLOAT16:
            return decode_blocks_of<Bfloat16>(job, first, last, scratch);
        default:
            return decode_blocks_of<Float32>(job, first, last, scratch);
    }
}

float read_sum(const float* values, uint64_t n) {
    Lanes::Float sum[4] = {Lanes::zero(), Lanes::zero(), Lanes::zero(), Lanes::zero()};
    for (uint64_t i = 0; i + 64 <= n; i += 64)
        for (int k = 0; k < 4; ++k) {
            __builtin_prefetch(values + i + 16 * k + 2560);
            sum[k] = Lanes::add(sum[k], Lanes::load(values + i + 16 * k));
        }
    float lanes[16], total = 0;
    Lanes::store(lanes, Lanes::add(Lanes::add(sum[0], sum[1]), Lanes::add(sum[2], sum[3])));
    for (float lane : lanes) total += lane;
    return total;
}

}  // namespace
}  // namespace qsgd
