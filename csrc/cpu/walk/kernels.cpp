// The walks of one instruction set. This file is compiled once for each, with DIFNET_ISA naming it; it includes no
// standard library code, whose inline functions could otherwise leak instructions into the rest of the program.

#include "cpu/walk/table.h"

namespace difnet::cpu::DIFNET_ISA {

extern const WalkKernels<float> kWalkFloat;
extern const WalkKernels<double> kWalkDouble;
const WalkKernels<float> kWalkFloat = walk_kernels<float, float>();
const WalkKernels<double> kWalkDouble = walk_kernels<double, double>();

}  // namespace difnet::cpu::DIFNET_ISA
