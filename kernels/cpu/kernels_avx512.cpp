#if defined(__x86_64__)
// GCC 12's AVX-512 intrinsics read variables that they leave undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/avx512.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kAvx512Kernels = {"avx512",      encode_blocks, sum_blocks, bucket_squares,
                                decode_blocks, checksum,      read_sum};
}  // namespace qsgd
#endif
