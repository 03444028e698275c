#if defined(__x86_64__)
// GCC 12's AVX-512 intrinsics read variables that they leave undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/avx512.h"
#include "cpu/rans_avx512.h"
#include "cpu/rans_vectors.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kAvx512Kernels = QSGD_KERNELS("avx512");
}  // namespace qsgd
#endif
