// The table of the walks whose products multiply Factors.
#pragma once

#include "kernels.h"
#include "walk_backward_tile.h"
#include "walk_forward_tile.h"

namespace difnet::DIFNET_ISA {

template <typename Real, typename Factor>
constexpr WalkKernels<Real, Factor> walk_kernels() {
  return {kChannelUnit<Real>,
          kPanel<Real>,
          kTogether<Factor>,
          {forward_open<Real, Factor>, forward_pair<Real, Factor>, forward_close<Real, Factor>},
          {backward_open<Real, Factor>, backward_pair<Real, Factor>, backward_close<Real, Factor>}};
}

}  // namespace difnet::DIFNET_ISA
