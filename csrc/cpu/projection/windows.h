// What both directions of Ψ need around their kernels: which kernels run, images as volumes, and the windows of
// adaptive pooling.
#pragma once

#include <array>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/isa.h"
#include "cpu/projection/projection.h"
#include "cpu/workspace.h"

namespace difnet::cpu {

#define DIFNET_PROJECTION(NAME)                             \
  namespace NAME {                                          \
  extern const ProjectionKernels<float> kProjectionFloat;   \
  extern const ProjectionKernels<double> kProjectionDouble; \
  }
#define DIFNET_PROJECTION_UNIT(NAME)                  \
  namespace NAME {                                    \
  extern const ProjectionUnitKernels kProjectionUnit; \
  }
#include "isa_built.def"

// Those of the instruction sets in use (isa.def).
template <typename Real>
const ProjectionKernels<Real>& projection_kernels() {
  static const ProjectionKernels<Real>* const chosen = [] {
    const ProjectionKernels<Real>* tables[int(Isa::kCount)] = {};
    if constexpr (sizeof(Real) == 4) {
#define DIFNET_PROJECTION(NAME) tables[int(Isa::k_##NAME)] = &NAME::kProjectionFloat;
#include "isa_built.def"
    } else {
#define DIFNET_PROJECTION(NAME) tables[int(Isa::k_##NAME)] = &NAME::kProjectionDouble;
#include "isa_built.def"
    }
    return in_use(tables);
  }();
  return *chosen;
}

// null where no set in use has a matrix unit
inline const ProjectionUnitKernels* unit_projection_kernels() {
  static const ProjectionUnitKernels* const chosen = [] {
    const ProjectionUnitKernels* tables[int(Isa::kCount)] = {};
#define DIFNET_PROJECTION_UNIT(NAME) tables[int(Isa::k_##NAME)] = &NAME::kProjectionUnit;
#include "isa_built.def"
    return in_use(tables);
  }();
  return chosen;
}

// Those for the features of a call: a matrix unit takes what dispatch.h gives it.
template <typename Real>
const ProjectionKernels<Real>& projection_kernels(const Tensor& features) {
  if constexpr (sizeof(Real) == 4) {
    const ScalarType type = features.scalar_type();
    const ProjectionUnitKernels* unit = unit_projection_kernels();
    if (unit != nullptr && unit_projects(unit->name, type, features.size(1)))
      return type == ScalarType::BFloat16 ? unit->bf16 : type == ScalarType::Half ? unit->fp16 : unit->fp32;
  }
  return projection_kernels<Real>();
}

// The images of a (B, C, Z, H, W) tensor.
inline std::vector<Volume> volumes(const Tensor& tensor) {
  std::vector<Volume> images;
  for (int64_t b = 0; b < tensor.size(0); ++b)
    images.push_back({image_data(tensor, b),
                      tensor.stride(1),
                      {tensor.stride(2), tensor.stride(3), tensor.stride(4)},
                      dtype(tensor)});
  return images;
}

// The windows of torch's adaptive pooling along three axes.
class Windows {
 public:
  Windows(std::array<int64_t, 3> pixels, std::array<int64_t, 3> windows) : pixels_(pixels), windows_(windows) {
    for (int a = 0; a < 3; ++a)
      for (int64_t i = 0; i <= windows[a]; ++i) {
        start_[a].push_back(i * pixels[a] / windows[a]);
        end_[a].push_back(((i + 1) * pixels[a] + windows[a] - 1) / windows[a]);
      }
  }
  Axis axis(int a) const { return {pixels_[a], windows_[a], start_[a].data(), end_[a].data()}; }

 private:
  std::array<int64_t, 3> pixels_, windows_;
  std::vector<int64_t> start_[3], end_[3];
};

inline ProjectionSizes projection_sizes(const Tensor& weight, const Windows& windows, int64_t panel) {
  const int64_t C = weight.size(1), D = weight.size(0);
  return {C, D, (D + panel - 1) / panel, (C + kTile - 1) / kTile, {windows.axis(0), windows.axis(1), windows.axis(2)}};
}

template <typename Real>
Real* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<Real*>(tensor->data_ptr()) : nullptr;
}

}  // namespace difnet::cpu
