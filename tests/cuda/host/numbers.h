// The numbers of the vocabulary: what device.h has, and programs that run kernels need, too.
#pragma once

#include <cmath>
#include <cstdint>

#include "fiber.h"

#define DIFNET_DEVICE inline

namespace difnet::cuda {

TWIN_PLAIN DIFNET_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
TWIN_PLAIN DIFNET_DEVICE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

DIFNET_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
DIFNET_DEVICE float larger(float a, float b) { return std::fmax(a, b); }
DIFNET_DEVICE float smaller(float a, float b) { return std::fmin(a, b); }
DIFNET_DEVICE float magnitude(float x) { return std::fabs(x); }
DIFNET_DEVICE float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
DIFNET_DEVICE float log2_exact(float x) { return std::log2(x); }
DIFNET_DEVICE float inverse_root(float x) { return float(1.0 / std::sqrt(double(x))); }
DIFNET_DEVICE float half_to_float(uint16_t bits) {
  _Float16 half;
  __builtin_memcpy(&half, &bits, sizeof half);
  return float(half);
}
DIFNET_DEVICE uint16_t float_to_half(float x) {
  const _Float16 half = _Float16(x);
  uint16_t bits;
  __builtin_memcpy(&bits, &half, sizeof bits);
  return bits;
}
DIFNET_DEVICE uint32_t two_halves(float first, float second) {
  return float_to_half(first) | uint32_t(float_to_half(second)) << 16;
}
DIFNET_DEVICE uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace difnet::cuda
