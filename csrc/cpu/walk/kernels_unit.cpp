// The walks on a matrix unit, or on its model where the flags of the instruction set name none. Compiled under the rules
// of kernels.cpp.

#include "cpu/walk/unit_backward.h"
#include "cpu/walk/unit_forward.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Scratch>
void begin_unit(Scratch& scratch) {
  Unit::begin(scratch.callers_unit);
}
template <typename Scratch>
void end_unit(Scratch& scratch) {
  Unit::end(scratch.callers_unit);
}

template <const Scheme& scheme>
constexpr WalkKernels<float> unit_kernels() {
  using Forward = WalkForwardScratch<float>;
  using Backward = WalkBackwardScratch<float>;
  return {kChannelUnit<float>,
          kNR<float>,
          1,
          {walk_unit_forward_prologue<scheme>,
           walk_unit_forward_multiply<scheme>,
           walk_unit_forward_commit<scheme>,
           walk_unit_forward_epilogue<scheme>,
           {begin_unit<Forward>, end_unit<Forward>,
            [](const WalkSizes& size, bool) { return ForwardOperands::places(scheme, size); },
            [](const WalkSizes& size) { return ForwardMemory::places(scheme, size); }}},
          {walk_unit_backward_prologue<scheme>,
           walk_unit_backward_multiply<scheme>,
           walk_unit_backward_commit<scheme>,
           walk_unit_backward_epilogue<scheme>,
           {begin_unit<Backward>, end_unit<Backward>,
            [](const WalkSizes& size, bool with_psi) { return BackwardOperands::places(scheme, size, with_psi); },
            [](const WalkSizes& size) { return BackwardMemory::places(scheme, size); }}}};
}

// One product of registers, for tests: sums [16][16] += a [16][16 pairs] b [16 pairs][16].
static void multiply_registers(float* sums, const uint32_t* a, const uint32_t* b) {
  unsigned char callers[64];
  Unit::begin(callers);
  Unit::write_rows<0>(sums, kSide);
  Unit::load_a<4>(a);
  Unit::load_b<6>(b);
  Unit::multiply<0, 4, 6>();
  Unit::read_rows<0>(sums, kSide);
  Unit::end(callers);
}

// The peak of the unit, for benchmarks: products whose operands stay in registers, in four chains of sums.
static void spin(int64_t steps) {
  unsigned char callers[64];
  alignas(64) static const uint32_t zeros[kRegister] = {};
  Unit::begin(callers);
  Unit::load_a<4>(zeros);
  Unit::load_a<5>(zeros);
  Unit::load_b<6>(zeros);
  Unit::load_b<7>(zeros);
  Unit::clear<0>();
  Unit::clear<1>();
  Unit::clear<2>();
  Unit::clear<3>();
  for (; steps > 0; --steps) {
    Unit::multiply<0, 4, 6>();
    Unit::multiply<1, 4, 7>();
    Unit::multiply<2, 5, 6>();
    Unit::multiply<3, 5, 7>();
  }
  Unit::end(callers);
}

#define DIFNET_TEXT(NAME) #NAME
#define DIFNET_TEXT_OF(MACRO) DIFNET_TEXT(MACRO)

extern const WalkUnitKernels kWalkUnit;
const WalkUnitKernels kWalkUnit = {DIFNET_TEXT_OF(DIFNET_ISA),
                                   unit_kernels<kHigh>(),
                                   unit_kernels<kMedium>(),
                                   unit_kernels<kOfBf16>(),
                                   unit_kernels<kOfFp16>(),
                                   multiply_registers,
                                   spin,
                                   Unit::counts};

}  // namespace difnet::cpu::DIFNET_ISA
