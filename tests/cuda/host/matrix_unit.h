// What mma.sync computes, as the matrix units of a card do: eight products and the sum are aligned to the largest of
// them, 24 bits are kept of each, and what is below is cut off, not rounded. Cards keep up to two bits more; none keeps
// fewer. A row of eight columns at a time, in the vectors of the compiler.
#pragma once

#include <cstdint>

#include "fiber.h"

namespace twin {

constexpr int kM = 16, kN = 8, kK = 16, kAtOnce = 8;

using Floats = float __attribute__((vector_size(4 * kN), may_alias));
using Ints = int32_t __attribute__((vector_size(4 * kN)));
using Halves = int16_t __attribute__((vector_size(2 * kN), may_alias));

TWIN_PLAIN inline Floats to_floats(Halves halves) { return __builtin_ia32_vcvtph2ps256(halves); }

// sum[n] + Σ_k a[k] b[k][n] for one row and kAtOnce of its k
TWIN_PLAIN inline Floats truncating_step(Floats sum, const float* a, const Floats* b) {
  const Ints kExponent = Ints{} + 0x7f800000, kSmallest = Ints{} + (30 << 23);
  Floats product[kAtOnce];
  Ints largest = Ints(sum) & kExponent;
#pragma GCC unroll 8
  for (int k = 0; k < kAtOnce; ++k) {
    product[k] = a[k] * b[k];  // exact: 11 bits times 11 bits
    const Ints exponent = Ints(product[k]) & kExponent;
    largest = exponent > largest ? exponent : largest;
  }
  const Ints infinite = largest == kExponent;
  const Ints unit = largest > kSmallest ? largest : kSmallest;
  const Floats to_integer = Floats(((127 + 23 + 127) << 23) - unit);
  Ints total = __builtin_convertvector(sum * to_integer, Ints);
#pragma GCC unroll 8
  for (int k = 0; k < kAtOnce; ++k) total += __builtin_convertvector(product[k] * to_integer, Ints);
  // at most 28 bits, of which 24 are kept
  const Ints sign = total >> 31, size = (total ^ sign) - sign, above = size >> 24;
  const Ints kept = size & ~(above | above >> 1 | above >> 2 | above >> 3);
  const Floats result = __builtin_convertvector((kept ^ sign) - sign, Floats) * Floats(unit - (23 << 23));
  if (__builtin_ia32_movmskps256(Floats(infinite)) == 0) return result;
  for (int k = 0; k < kAtOnce; ++k) sum += product[k];  // infinity and NaN go where they go in any sum
  return Floats((infinite & Ints(sum)) | (~infinite & Ints(result)));
}

// to[k][n] = from[n][k], by three perfect shuffles
TWIN_PLAIN inline void transpose(Floats (&to)[kAtOnce], const uint32_t* from) {
  Halves rows[kN], next[kN];
  for (int n = 0; n < kN; ++n) rows[n] = reinterpret_cast<const Halves*>(from)[n];
  for (int stage = 0; stage < 3; ++stage) {
    for (int n = 0; n < kN / 2; ++n) {
      next[2 * n] = __builtin_shuffle(rows[n], rows[n + kN / 2], Halves{0, 8, 1, 9, 2, 10, 3, 11});
      next[2 * n + 1] = __builtin_shuffle(rows[n], rows[n + kN / 2], Halves{4, 12, 5, 13, 6, 14, 7, 15});
    }
    for (int n = 0; n < kN; ++n) rows[n] = next[n];
  }
  for (int k = 0; k < kAtOnce; ++k) to[k] = to_floats(rows[k]);
}

// Words of halves and sums as the 32 lanes hold them: four lanes have a row of a, or a column of b.
TWIN_PLAIN inline void truncating_mma(float (&sum)[2][32][2], const uint32_t (&word)[6][32]) {
  Floats b[kK / kAtOnce][kAtOnce];
  for (int part = 0; part < kK / kAtOnce; ++part) transpose(b[part], word[4 + part]);
  for (int row = 0; row < kM; ++row) {
    const int first = row % 8 * 4;
    Floats& of_row = reinterpret_cast<Floats&>(sum[row / 8][first]);
    for (int part = 0; part < kK / kAtOnce; ++part) {
      const Floats a = to_floats(reinterpret_cast<const Halves&>(word[2 * part + row / 8][first]));
      of_row = truncating_step(of_row, reinterpret_cast<const float*>(&a), b[part]);
    }
  }
}

}  // namespace twin
