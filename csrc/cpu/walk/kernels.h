// Which walk kernels run: those of the instruction sets in use (isa.def), for the dtypes of the fields.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/isa.h"
#include "cpu/walk/walk.h"
#include "cpu/workspace.h"

namespace difnet::cpu {

#define DIFNET_WALK(NAME)                       \
  namespace NAME {                              \
  extern const WalkKernels<float> kWalkFloat;   \
  extern const WalkKernels<double> kWalkDouble; \
  }
#define DIFNET_WALK_BF16(NAME)                         \
  namespace NAME {                                     \
  extern const WalkKernels<float, Bf16Pair> kWalkBf16; \
  }
#define DIFNET_WALK_UNIT(NAME)            \
  namespace NAME {                        \
  extern const WalkUnitKernels kWalkUnit; \
  }
#include "isa_built.def"

template <typename Real>
const WalkKernels<Real>& walk_kernels() {
  static const WalkKernels<Real>* const chosen = [] {
    const WalkKernels<Real>* tables[int(Isa::kCount)] = {};
    if constexpr (sizeof(Real) == 4) {
#define DIFNET_WALK(NAME) tables[int(Isa::k_##NAME)] = &NAME::kWalkFloat;
#include "isa_built.def"
    } else {
#define DIFNET_WALK(NAME) tables[int(Isa::k_##NAME)] = &NAME::kWalkDouble;
#include "isa_built.def"
    }
    return in_use(tables);
  }();
  return *chosen;
}

// null where no set in use multiplies bf16 numbers
inline const WalkKernels<float, Bf16Pair>* bf16_walk_kernels() {
  static const WalkKernels<float, Bf16Pair>* const chosen = [] {
    const WalkKernels<float, Bf16Pair>* tables[int(Isa::kCount)] = {};
#define DIFNET_WALK_BF16(NAME) tables[int(Isa::k_##NAME)] = &NAME::kWalkBf16;
#include "isa_built.def"
    return in_use(tables);
  }();
  return chosen;
}

// null where no set in use has a matrix unit
inline const WalkUnitKernels* unit_walk_kernels() {
  static const WalkUnitKernels* const chosen = [] {
    const WalkUnitKernels* tables[int(Isa::kCount)] = {};
#define DIFNET_WALK_UNIT(NAME) tables[int(Isa::k_##NAME)] = &NAME::kWalkUnit;
#include "isa_built.def"
    return in_use(tables);
  }();
  return chosen;
}

// Those of a set by its name, in use or not; null where it has none, or does not run here.
inline const WalkUnitKernels* unit_walk_kernels(const std::string& name) {
  for (const std::string& runs : isa_names(true)) {
    if (runs != name) continue;
#define DIFNET_WALK_UNIT(NAME) \
  if (name == #NAME) return &NAME::kWalkUnit;
#include "isa_built.def"
  }
  return nullptr;
}

// body(kernels) with those that fit: the accumulation dtype decides, a matrix unit takes what dispatch.h gives it, and
// bf16 fields go in pairs.
template <typename Body>
void with_walks(const Tensor& walked, const Tensor& seed, const Tensor& psi, bool high, Body body) {
  if (walked.scalar_type() == ScalarType::Double) return body(walk_kernels<double>());
  const ScalarType type = seed.scalar_type() == psi.scalar_type() ? seed.scalar_type() : ScalarType::Float;
  const WalkUnitKernels* unit = unit_walk_kernels();
  if (unit != nullptr && unit_walks(unit->name, type, psi.size(2), seed.size(1), psi.size(1))) {
    if (type == ScalarType::BFloat16) return body(unit->bf16);
    if (type == ScalarType::Half) return body(unit->fp16);
    return body(high ? unit->high : unit->medium);
  }
  const auto* pairs = type == ScalarType::BFloat16 ? bf16_walk_kernels() : nullptr;
  pairs != nullptr ? body(*pairs) : body(walk_kernels<float>());
}

template <typename Real, typename Factor>
WalkSizes walk_sizes(const Tensor& state, const Tensor& psi, const WalkKernels<Real, Factor>& kernels) {
  const int64_t K = state.size(1), D = psi.size(1);
  return {state.size(2),
          K,
          D,
          round_up(K + 1, kernels.channel_unit),
          round_up(D, kernels.channel_unit),
          round_up(K + 1, kernels.panel),
          round_up(D, kernels.panel),
          round_up(D, kernels.per_factor) / kernels.per_factor};
}

}  // namespace difnet::cpu
