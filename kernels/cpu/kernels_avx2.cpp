#if defined(__x86_64__)
#include "cpu/avx2.h"
#include "cpu/rans_avx2.h"
#include "cpu/rans_vectors.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kAvx2Kernels = QSGD_KERNELS("avx2");
}  // namespace qsgd
#endif
