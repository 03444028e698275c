#include "cpu/baseline.h"
#include "cpu/rans_units.h"
//
#include "cpu/kernels.inc.h"

namespace qsgd {
const Kernels kBaselineKernels = QSGD_KERNELS("baseline");
}  // namespace qsgd
