#if defined(__x86_64__)
#include "cpu/avx2.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kAvx2Kernels = {"avx2",        encode_blocks, sum_blocks, bucket_squares,
                              decode_blocks, checksum,      read_sum};
}  // namespace qsgd
#endif
