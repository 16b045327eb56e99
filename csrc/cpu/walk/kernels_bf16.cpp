// The walks on bf16 fields, for processors that multiply pairs of bf16 numbers. Compiled under the rules of
// kernels.cpp.

#include "cpu/products_bf16.h"  // first: the tiles are made of it
#include "cpu/walk/table.h"

namespace difnet::cpu::DIFNET_ISA {

extern const WalkKernels<float, Bf16Pair> kWalkBf16;
const WalkKernels<float, Bf16Pair> kWalkBf16 = walk_kernels<float, Bf16Pair>();

}  // namespace difnet::cpu::DIFNET_ISA
