// The table of kernels that every instruction set fills in (kernels.cpp) and the drivers choose from (driver.cpp).
#pragma once

#include "psi.h"
#include "walk.h"

namespace difnet {

template <typename Real>
struct Kernels {
  int register_bytes, channel_unit, panel;
  Steps<Forward<Real>> forward;
  Steps<Backward<Real>> backward;
  PsiForwardSteps<Real> psi_forward;
  PsiBackwardSteps<Real> psi_backward;
};

#define DIFNET_DECLARE_KERNELS(ISA)      \
  namespace ISA {                        \
  extern const Kernels<float> kFloat32;  \
  extern const Kernels<double> kFloat64; \
  }
DIFNET_DECLARE_KERNELS(baseline)
DIFNET_DECLARE_KERNELS(avx2)
DIFNET_DECLARE_KERNELS(avx512)
#undef DIFNET_DECLARE_KERNELS

}  // namespace difnet
