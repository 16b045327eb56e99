// The table of the walks whose products multiply Factors.
#pragma once

#include "cpu/walk/backward_tile.h"
#include "cpu/walk/forward_tile.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real, typename Factor>
constexpr WalkKernels<Real, Factor> walk_kernels() {
  return {kChannelUnit<Real>,
          kNR<Real>,
          kPerFactor<Factor>,
          {walk_forward_prologue<Real, Factor>, walk_forward_multiply<Real, Factor>, walk_forward_commit<Real, Factor>,
           walk_forward_epilogue<Real, Factor>},
          {walk_backward_prologue<Real, Factor>, walk_backward_multiply<Real, Factor>,
           walk_backward_commit<Real, Factor>, walk_backward_epilogue<Real, Factor>}};
}

}  // namespace difnet::cpu::DIFNET_ISA
