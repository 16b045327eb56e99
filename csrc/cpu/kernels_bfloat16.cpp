// The walks on bf16 fields, for processors that multiply pairs of bf16 numbers. Compiled once, under the rules of
// kernels.cpp.

#include "kernels.h"
#include "pairs.h"
#include "walk_backward_tile.h"
#include "walk_forward_tile.h"

namespace difnet::DIFNET_ISA {

extern const WalkKernels<float, Pair> kBFloat16;
const WalkKernels<float, Pair> kBFloat16 = walk_kernels<float, Pair>();

}  // namespace difnet::DIFNET_ISA
