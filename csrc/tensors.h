// Tensors of torch as fields.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "field.h"

namespace difnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBf16;
    default: STD_TORCH_CHECK(false, "a field must be float16, bfloat16, float32 or float64");
  }
}

// Where image `image` of a tensor (B, ...) starts.
inline void* image_data(const Tensor& tensor, int64_t image) {
  return static_cast<char*>(tensor.data_ptr()) + image * tensor.stride(0) * int64_t(tensor.element_size());
}

// Image `image` of a (B, C, N) tensor.
inline Field field(const Tensor& tensor, int64_t image) {
  return {image_data(tensor, image), tensor.stride(1), tensor.stride(2), dtype(tensor)};
}

}  // namespace difnet
