// Ψ's kernels of one instruction set; compiled under the rules of walk/kernels.cpp.

#include "cpu/projection/backward_tile.h"
#include "cpu/projection/forward_tile.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
constexpr ProjectionKernels<Real> projection_kernels() {
  return {kNR<Real>,
          {projection_forward_prepare<Real>, projection_forward_pool<Real>},
          {projection_backward_prepare<Real>, projection_backward_tile<Real>, projection_backward_finish<Real>}};
}

extern const ProjectionKernels<float> kProjectionFloat;
extern const ProjectionKernels<double> kProjectionDouble;
const ProjectionKernels<float> kProjectionFloat = projection_kernels<float>();
const ProjectionKernels<double> kProjectionDouble = projection_kernels<double>();

}  // namespace difnet::cpu::DIFNET_ISA
