// Tiles that are far apart: no weight between them is above the negligible bound, and they are passed over before a
// logit is formed. Exact, because such weights are zeros anyway (exponential.h). Positions, colours and whatever else is
// local make most pairs of tiles so; embeddings of a network seldom do, and lose a few dozen instructions for a pair.
//
//   psi_i psi_j = (|psi_i|^2 + |psi_j|^2 - |psi_i - psi_j|^2) / 2,
//
// and two nodes are no closer than the boxes of their tiles: the least and the largest number of each channel.
#pragma once

#include "cpu/exponential.h"
#include "cpu/products.h"

namespace difnet::cpu::DIFNET_ISA {

// Of a tile in node panels, whose squared norms are at most `squared_norm`.
template <typename Real, typename Factor>
DIFNET_INLINE void set_box(const WalkInputs<Real>& walk, int64_t tile, const Factor* lanes, Real squared_norm) {
  constexpr int NR = kNR<Factor>, W = kWidth<Real>, per_factor = kPerFactor<Factor>;
  using V = Vec<Real>;
  if (walk.size.nodes <= kTile) return;
  const int64_t D = walk.size.embed_factors, channels = D * per_factor;
  Real* box = walk.boxes + tile * (2 * channels + 1);
  for (int64_t c = 0; c < channels; ++c) {
    V most = broadcast<V>(-Real(__builtin_inf())), most_below = most;
    for (int n = 0; n < kTile; n += W) {
      const Factor* at = lanes + (n / NR * D + c / per_factor) * NR + n % NR;
      const V x = Factors<Factor>::number(load<Vec<Factor>>(at), c % per_factor);
      most = larger(most, x);
      most_below = larger(most_below, -x);
    }
    box[c] = -largest_lane(most_below);
    box[channels + c] = largest_lane(most);
  }
  box[2 * channels] = squared_norm;
}

// The least shift of a tile's rows.
template <typename Real>
DIFNET_INLINE Real least_shift(const Shifts<Real>& rows) {
  using V = Vec<Real>;
  V most_below = -load<V>(rows.shift);
  for (int n = kWidth<Real>; n < kTile; n += kWidth<Real>) most_below = larger(most_below, -load<V>(rows.shift + n));
  return -largest_lane(most_below);
}

// Whether no node of tile a has a weight for one of tile b, nor the other way round.
template <int PerFactor, typename Walk>
DIFNET_INLINE bool far_apart(const Walk& walk, int64_t a, int64_t b) {
  using Real = decltype(walk.mu + walk.mu);
  if (a == b || !walk.finite[a] || !walk.finite[b]) return false;
  const int64_t channels = walk.size.embed_factors * PerFactor;
  const Real *box_a = walk.boxes + a * (2 * channels + 1), *box_b = walk.boxes + b * (2 * channels + 1);
  Real apart = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const Real above = box_a[c] - box_b[channels + c], below = box_b[c] - box_a[channels + c];
    const Real gap = above > below ? above : below;
    apart += gap > 0 ? gap * gap : 0;
  }
  const Real norms = box_a[2 * channels] + box_b[2 * channels];
  const Real largest = (norms - apart) / 2 + norms / (1 << 14) + 1;  // of psi_i psi_j, with room for its rounding
  const Real bias_a = walk.bias == nullptr ? 0 : walk.tile_bias[a].most;
  const Real bias_b = walk.bias == nullptr ? 0 : walk.tile_bias[b].most;
  const Real row = largest + bias_b - least_shift(walk.shifts[a]);
  const Real column = largest + bias_a - least_shift(walk.shifts[b]);
  const Real negligible = -kNegligible<Real> * kLn2<Real>;
  return row < negligible && column < negligible;
}

}  // namespace difnet::cpu::DIFNET_ISA
