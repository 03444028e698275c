#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace qsgd {
namespace {

const Kernels* best() {
#ifdef QSGD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kAvx512Kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return &kAvx2Kernels;
#endif
    return &kBaselineKernels;
}

// HVD_QSGD_ISA asks for less than the processor has; it cannot give more.
const Kernels* choose() {
    const Kernels* have = best();
    const char* wanted = std::getenv("HVD_QSGD_ISA");
    if (!wanted || !*wanted) return have;
    if (!std::strcmp(wanted, "baseline")) return &kBaselineKernels;
#ifdef QSGD_X86
    if (!std::strcmp(wanted, "avx2") && have == &kAvx512Kernels) return &kAvx2Kernels;
#endif
    return have;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels* const chosen = choose();
    return *chosen;
}

}  // namespace qsgd
