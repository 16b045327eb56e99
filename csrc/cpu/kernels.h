// The table of kernels that every instruction set fills in (kernels.cpp) and the drivers choose from (driver.cpp).
#pragma once

#include "psi.h"
#include "walk.h"

namespace difnet {

template <typename Real, typename Factor = Real>
struct WalkKernels {
  int channel_unit, panel, together;  // numbers in a factor
  Steps<Forward<Real, Factor>> forward;
  Steps<Backward<Real, Factor>> backward;
};

template <typename Real>
struct Kernels {
  int panel;
  WalkKernels<Real> walk;
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
namespace avx512bf16 {
extern const WalkKernels<float, Pair> kBFloat16;
}

}  // namespace difnet
