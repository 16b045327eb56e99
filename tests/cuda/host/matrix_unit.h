// What mma.sync computes, as the matrix units of a card do: eight products and the sum are aligned to the largest of
// them, 24 bits are kept of each, and what is below is cut off, not rounded. Cards keep up to two bits more; none keeps
// fewer.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fiber.h"

namespace twin {

TWIN_PLAIN inline float half_to_float(uint16_t bits) {
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return float(half);
}
TWIN_PLAIN inline uint16_t float_to_half(float x) {
  const _Float16 half = _Float16(x);
  uint16_t bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

constexpr int kM = 16, kN = 8, kK = 16, kAtOnce = 8;

// sum[n] + Σ_k a[k] b[k][n] for one row and kAtOnce of its k
TWIN_PLAIN inline void truncating_step(float (&sum)[kN], const float* a, const float (*b)[kN]) {
  float product[kAtOnce + 1][kN];
  int32_t exponent[kN];
  const auto exponent_bits = [](float x) TWIN_PLAIN {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7f800000;
  };
  for (int n = 0; n < kN; ++n) {
    product[kAtOnce][n] = sum[n];
    exponent[n] = exponent_bits(sum[n]);
  }
  for (int k = 0; k < kAtOnce; ++k)
    for (int n = 0; n < kN; ++n) {
      product[k][n] = a[k] * b[k][n];  // exact: 11 bits times 11 bits
      const int32_t mine = exponent_bits(product[k][n]);
      exponent[n] = mine > exponent[n] ? mine : exponent[n];
    }
  float to_integer[kN], unit[kN];
  int32_t total[kN] = {};
  for (int n = 0; n < kN; ++n) {
    const uint32_t largest = exponent[n] > (30 << 23) ? uint32_t(exponent[n]) : 30u << 23;
    const uint32_t up = ((127u + 23 + 127) << 23) - largest, down = largest - (23u << 23);
    memcpy(&to_integer[n], &up, sizeof up);
    memcpy(&unit[n], &down, sizeof down);
  }
  const auto finite = [&](int n) TWIN_PLAIN { return exponent[n] != 0x7f800000; };
  for (int k = 0; k <= kAtOnce; ++k)
    for (int n = 0; n < kN; ++n) total[n] += finite(n) ? int32_t(product[k][n] * to_integer[n]) : 0;
  for (int n = 0; n < kN; ++n) {
    if (!finite(n)) {  // infinity and NaN go where they go in any sum
      for (int k = 0; k < kAtOnce; ++k) sum[n] += product[k][n];
      continue;
    }
    // at most 28 bits, of which 24 are kept
    const int32_t size = total[n] < 0 ? -total[n] : total[n], above = size >> 24;
    const int32_t kept = size & ~(above | above >> 1 | above >> 2 | above >> 3);
    sum[n] = (total[n] < 0 ? -float(kept) : float(kept)) * unit[n];
  }
}

TWIN_PLAIN inline void truncating_mma(float (&sum)[kM][kN], const float (&a)[kM][kK], const float (&b)[kK][kN]) {
  for (int row = 0; row < kM; ++row)
    for (int k = 0; k < kK; k += kAtOnce) truncating_step(sum[row], a[row] + k, b + k);
}

}  // namespace twin
