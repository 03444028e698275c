// The table of range functions for the instruction set whose Lanes was included before.
#include "cpu/decode.h"
#include "cpu/decode_stretches.h"
#include "cpu/elias_blocks.h"
#include "cpu/encode.h"
#include "cpu/rans_encode.h"
#include "cpu/residual.h"
#include "cpu/rounding.h"

namespace qsgd {
namespace {

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

#define QSGD_KERNELS(name)                                                                       \
    {                                                                                            \
        name,          encode_blocks, sum_blocks,  sum_sides,    bucket_squares,   rounding_sum, \
        decode_blocks, sample_codes,  encode_rans, encode_elias, decode_stretches, add_gradient, \
        checksum,      read_sum}

}  // namespace
}  // namespace qsgd
