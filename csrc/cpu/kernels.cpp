// The kernels of one instruction set. This file is compiled once for each, with DIFNET_ISA naming it; it includes no
// standard library code, whose inline functions could otherwise leak instructions into the rest of the program.

#include "kernels.h"

#include "psi_backward_tile.h"
#include "psi_forward_tile.h"
#include "walk_kernels.h"

namespace difnet::DIFNET_ISA {

template <typename Real>
constexpr Kernels<Real> kernels() {
  return {kPanel<Real>,
          walk_kernels<Real, Real>(),
          {psi_forward_prepare<Real>, psi_pool<Real>},
          {psi_backward_prepare<Real>, psi_backward_tile<Real>, psi_backward_finish<Real>}};
}

extern const Kernels<float> kFloat32;
extern const Kernels<double> kFloat64;
const Kernels<float> kFloat32 = kernels<float>();
const Kernels<double> kFloat64 = kernels<double>();

}  // namespace difnet::DIFNET_ISA
