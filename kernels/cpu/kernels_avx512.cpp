#if defined(__x86_64__)
#include "cpu/avx512.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kAvx512Kernels = {"avx512",      encode_blocks, sum_blocks, bucket_squares,
                                decode_blocks, checksum,      read_sum};
}  // namespace qsgd
#endif
