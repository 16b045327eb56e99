// A tensor as every device sees it: a pointer, strides and a dtype. No torch and no code, so kernels may include it.
#pragma once

#include <stdint.h>

namespace difnet {

enum class DType : int8_t { kFloat, kDouble, kHalf, kBf16 };

// A field (B, C, N) of any dtype and strides (in elements), at one image.
struct Field {
  void* data;
  int64_t channel_stride, node_stride;
  DType dtype;
};

}  // namespace difnet
