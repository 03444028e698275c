// The instruction set in use.
#pragma once

#include "cpu/jobs.h"

namespace qsgd {

const Kernels& kernels();

}  // namespace qsgd
