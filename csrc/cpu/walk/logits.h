// Logits of a micro-tile and their weights, for both directions of a walk: S_ij is symmetric, also with a bias (bias.h),
// so that row i takes exp(S_ij - shift_i) and row j takes exp(S_ij - shift_j).
#pragma once

#include "cpu/convert.h"
#include "cpu/exponential.h"
#include "cpu/products.h"

namespace difnet::cpu::DIFNET_ISA {

// Rows of a tile, from number `first` on, and their bias. Without one (Biased is false) nothing of it is read.
template <typename Real>
struct Rows {
  const Shifts<Real>& shifts;
  const TileBias<Real>* bias;
  int first;
};

// (W1, W1b) S_ij of kNR nodes i of tile a, from number i on, against kMR nodes j of tile b, without the integers of their
// biases. Forward and backward round alike.
template <bool Biased, typename Walk, typename Real>
DIFNET_INLINE void set_logits(const Walk& walk, int64_t a, int i, int64_t b, int j, MicroTile<Real>& S) {
  constexpr int NR = kNR<Real>;
  const int64_t D = walk.size.embed_factors;
  S = {};
  if constexpr (Biased) {
    const Real *rest_i = walk.tile_bias[a].rest + i, *rest_j = walk.tile_bias[b].rest + j;
#pragma GCC unroll 8
    for (int c = 0; c < kMR; ++c)
      for (int half = 0; half < 2; ++half)
        S.at[c][half] = load<Vec<Real>>(rest_i + half * kWidth<Real>) + broadcast<Vec<Real>>(rest_j[c]);
  }
  inner_products(walk.psi_node_panels + (a * kTile + i) * D,
                 walk.psi_node_panels + (b * kTile + j - j % NR) * D + j % NR, D, S);
}

// |psi_i|^2 of a tile in node panels, and the largest of them.
template <typename Factor>
DIFNET_INLINE Sum<Factor> squared_norms(const Factor* lanes, int64_t factors,
                                        Vec<Sum<Factor>> (&squares)[kTile / kWidth<Sum<Factor>>]) {
  using Real = Sum<Factor>;
  constexpr int NR = kNR<Factor>, W = kWidth<Real>;
  Vec<Real> largest = {};
  for (int n = 0; n < kTile; n += W) {
    const Factor* x = lanes + n / NR * factors * NR + n % NR;
    Vec<Real> square = {};
    for (int64_t c = 0; c < factors; ++c, x += NR)
      square = Factors<Factor>::multiply_add(square, load<Vec<Factor>>(x), load<Vec<Factor>>(x));
    squares[n / W] = square;
    largest = larger(largest, square);
  }
  return largest_lane(largest);
}

// The largest S_ij - shift of a micro-tile, over both directions, or a bound kUneven (bias.h) above it at most. A NaN is
// passed over.
template <bool Biased, typename Real>
DIFNET_INLINE Vec<Real> largest_exponent(const MicroTile<Real>& S, const Rows<Real>& rows_i, const Rows<Real>& rows_j) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
  const int i = rows_i.first, j = rows_j.first;
  const Real *shift_i = rows_i.shifts.shift + i, *shift_j = rows_j.shifts.shift + j;
  const bool uneven = Biased && !(rows_i.bias->even && rows_j.bias->even);
  V low, high, column;
#pragma GCC unroll 8
  for (int c = 0; c < kMR; ++c) {
    V of_i[2] = {S.at[c][0], S.at[c][1]}, of_j[2] = {S.at[c][0], S.at[c][1]};
    if (uneven) {
      for (int half = 0; half < 2; ++half) {
        of_i[half] += broadcast<V>(rows_j.bias->whole[j + c]);
        of_j[half] += load<V>(rows_i.bias->whole + i + half * W);
      }
    }
    low = c == 0 ? of_i[0] : larger(low, of_i[0]);
    high = c == 0 ? of_i[1] : larger(high, of_i[1]);
    const V fresh = larger(of_j[0], of_j[1]) - broadcast<V>(shift_j[c]);
    column = c == 0 ? fresh : larger(column, fresh);
  }
  V row = larger(low - load<V>(shift_i), high - load<V>(shift_i + W));
  if (Biased && !uneven) {
    row += broadcast<V>(rows_j.bias->most);
    column += broadcast<V>(rows_i.bias->most);
  }
  return larger(column, row);
}

// body(c, weights of column c for the rows i, for the row j), each in two registers: exp(S_ij - shift_i) and
// exp(S_ij - shift_j) of a micro-tile. The logits are read back from memory: together with the constants of exp they do
// not fit into the registers.
template <bool Biased, typename Real, typename Body>
DIFNET_INLINE void for_each_weight(const MicroTile<Real>& logits, const Rows<Real>& rows_i, const Rows<Real>& rows_j,
                                   bool in_range, Body body) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
  const int i = rows_i.first, j = rows_j.first;
  const Shifts<Real>&of_i = rows_i.shifts, &of_j = rows_j.shifts;
  MicroTile<Real> S = logits;
  __asm__("" : "+m"(S));
  if (in_range) {
    const V limit[2] = {load<V>(of_i.limit + i), load<V>(of_i.limit + i + W)};
    const V exponent[2] = {load<V>(of_i.exponent + i), load<V>(of_i.exponent + i + W)};
    V round[2] = {broadcast<V>(Base2<Real>::kRound), broadcast<V>(Base2<Real>::kRound)};
    if constexpr (Biased) {
      round[0] += load<V>(rows_i.bias->integer + i);
      round[1] += load<V>(rows_i.bias->integer + i + W);
    }
#pragma GCC unroll 2
    for (int c = 0; c < kMR; ++c) {
      const V limit_j = broadcast<V>(of_j.limit[j + c]), exponent_j = broadcast<V>(of_j.exponent[j + c]);
      V both[2] = {round[0], round[1]};
      if constexpr (Biased) {
        both[0] += broadcast<V>(rows_j.bias->integer[j + c]);
        both[1] += broadcast<V>(rows_j.bias->integer[j + c]);
      }
      const Exponential<Real> low = exponential_parts<Real>(S.at[c][0], both[0]);
      const Exponential<Real> high = exponential_parts<Real>(S.at[c][1], both[1]);
      const V row[2] = {weight(low, limit[0], exponent[0]), weight(high, limit[1], exponent[1])};
      const V column[2] = {weight(low, limit_j, exponent_j), weight(high, limit_j, exponent_j)};
      body(c, row, column);
    }
  } else {
    for (int c = 0; c < kMR; ++c) {
      V row[2], column[2];
      for (int half = 0; half < 2; ++half) {
        // biases and shifts first: either may be large, and what is left of them is small
        V below_i = -load<V>(of_i.shift + i + half * W), below_j = -broadcast<V>(of_j.shift[j + c]);
        if constexpr (Biased) {
          below_i += broadcast<V>(rows_j.bias->whole[j + c]);
          below_j += load<V>(rows_i.bias->whole + i + half * W);
        }
        row[half] = exponential(S.at[c][half] + below_i);
        column[half] = exponential(S.at[c][half] + below_j);
      }
      body(c, row, column);
    }
  }
}

}  // namespace difnet::cpu::DIFNET_ISA
