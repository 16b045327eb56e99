// Ψ on a matrix unit, or on its model where the flags of the instruction set name none. Compiled under the rules of
// walk/kernels.cpp.

#include "cpu/projection/forward_tile.h"
#include "cpu/projection/unit_backward.h"

namespace difnet::cpu::DIFNET_ISA {

template <const ProjectionScheme& scheme>
void projection_unit_forward_prepare(const ProjectionForward<float>& task, int64_t block) {
  projection_forward_prepare(task, block);
  WeightOfBlock(scheme, task.size, false, task.unit, block)
      .template fill<parts_of_b(scheme.features_weight)>(task.size, task.signed_weight, block);
}

template <const ProjectionScheme& scheme>
constexpr ProjectionKernels<float> unit_kernels() {
  return {kNR<float>,
          {projection_unit_forward_prepare<scheme>,
           projection_forward_pool<float, UnitProjection<scheme>>,
           {[](const ProjectionSizes& size) { return WeightOfBlock::places(scheme, size, false); },
            [](const ProjectionSizes& size) { return UnitProjection<scheme>::places(size); }}},
          {projection_unit_backward_prepare<scheme>,
           projection_backward_tile<float, UnitGradients<scheme>>,
           projection_unit_backward_finish<scheme>,
           {[](const ProjectionSizes& size) { return WeightOfBlock::places(scheme, size, true); },
            [](const ProjectionSizes& size) { return UnitGradients<scheme>::places(size); }}}};
}

#define DIFNET_TEXT(NAME) #NAME
#define DIFNET_TEXT_OF(MACRO) DIFNET_TEXT(MACRO)

extern const ProjectionUnitKernels kProjectionUnit;
const ProjectionUnitKernels kProjectionUnit = {DIFNET_TEXT_OF(DIFNET_ISA), unit_kernels<kOfFp32Features>(),
                                               unit_kernels<kOfBf16Features>(), unit_kernels<kOfFp16Features>()};

}  // namespace difnet::cpu::DIFNET_ISA
