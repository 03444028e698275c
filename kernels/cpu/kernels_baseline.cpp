#include "cpu/baseline.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kBaselineKernels = {"baseline",    encode_blocks, sum_blocks, bucket_squares,
                                  decode_blocks, checksum,      read_sum};
}  // namespace qsgd
