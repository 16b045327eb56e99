// The walks on bf16 fields, for processors that multiply pairs of bf16 numbers. Compiled once, under the rules of
// kernels.cpp.

#include "pairs.h"  // first: the tiles are made of it
#include "walk_kernels.h"

namespace difnet::DIFNET_ISA {

extern const WalkKernels<float, Pair> kBFloat16;
const WalkKernels<float, Pair> kBFloat16 = walk_kernels<float, Pair>();

}  // namespace difnet::DIFNET_ISA
