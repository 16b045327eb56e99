// A bias b_j of each column (W1b). P does not change where row i is multiplied by e^(b_i), and with that its logits,
// psi_i psi_j + b_i + b_j, are symmetric again: one micro-tile of them serves both directions, as without a bias.
//
// With b = m ln2 + rest, m an integer, the rests start the sums of a micro-tile of logits (logits.h), and m_i + m_j is
// one more term of the exponents of its weights (exponential.h): exact, however large it is, so that a row whose own
// column has no weight (m_i = kHidden) loses nothing. A row's shift is that of psi_i psi_j + b_j.
#pragma once

#include "cpu/convert.h"
#include "cpu/exponential.h"
#include "cpu/products.h"

namespace difnet::cpu::DIFNET_ISA {

// m of -inf: below every exponent of logits in range, however large the shift of the row is.
template <typename Real>
inline constexpr Real kHidden = -(1 << 19);

// Biases of a tile no further apart than this are taken for the largest of them where a logit is only looked for.
template <typename Real>
inline constexpr Real kUneven = 8;

// Whether the biases of a tile are finite or -inf, which no equation passes on, and whether they are in range.
struct BiasRange {
  bool finite, in_range;
};

// b = whole + rest, whole = m ln2; b itself is whole where it is out of range or -inf.
template <typename Real>
struct BiasParts {
  Vec<Real> whole, integer, rest;
};

template <typename Real>
DIFNET_INLINE BiasParts<Real> bias_parts(Vec<Real> b) {
  using V = Vec<Real>;
  using B = Base2<Real>;
  const V zero = {};
  const auto fits = (b <= broadcast<V>(Real(kInRange))) & (b >= broadcast<V>(Real(-kInRange)));
  const V m = (b * B::kPerLn2 + B::kRound) - B::kRound;
  const V without = b < zero ? broadcast<V>(kHidden<Real>) : zero;
  return {fits ? m * kLn2<Real> : b, fits ? m : without, fits ? (b - m * B::kLn2High) - m * B::kLn2Low : zero};
}

// The bias of a tile, padding hidden, in the forms of TileBias.
template <typename Real>
DIFNET_INLINE BiasRange set_bias(const WalkInputs<Real>& walk, int64_t tile) {
  TileBias<Real>& to = walk.tile_bias[tile];
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const Real infinity = Real(__builtin_inf());
  alignas(64) Real given[kTile];
  BiasRange range = {true, true};
  for (int n = 0; n < kTile; ++n) {
    const Real b = n < nodes ? walk.bias[tile * kTile + n] : -infinity;
    const Real size = __builtin_fabs(b);
    given[n] = b;
    range.finite = range.finite && (size < infinity || b < 0);
    range.in_range = range.in_range && (size <= kInRange || b == -infinity);
  }
  for (int n = 0; n < kTile; n += kWidth<Real>) {
    const BiasParts<Real> parts = bias_parts<Real>(load<Vec<Real>>(given + n));
    store(to.whole + n, parts.whole);
    store(to.integer + n, parts.integer);
    store(to.rest + n, parts.rest);
  }
  to.most = -infinity;
  for (Real b : to.whole) to.most = b > to.most ? b : to.most;
  to.even = range.finite;
  to.zero = true;
  for (int n = 0; n < kTile; ++n) {
    to.even = to.even && (to.whole[n] >= to.most - kUneven<Real> || given[n] == -infinity);
    to.zero = to.zero && given[n] == 0;
  }
  return range;
}

// Whether the logits of two tiles have a bias. Where it is zero, as under most of a mask, they are as fast as without one.
template <typename Walk>
DIFNET_INLINE bool biased(const Walk& walk, int64_t a, int64_t b) {
  return walk.bias != nullptr && !(walk.tile_bias[a].zero && walk.tile_bias[b].zero);
}

// Where the shifts of a tile's rows start: `starts` takes the larger of psi_i psi_i + b_i and of the logit of the column
// with the largest bias. Both are logits of the row, and one of them is nearly always close to its largest. They are
// summed as set_logits does it (logits.h), rests first: a rounding of logits of 1e9 is 64, and a row whose weights all
// lie that far below its shift would have none. Nothing where every bias is -inf.
template <typename Real, typename Factor>
DIFNET_INLINE void start_with_bias(const WalkInputs<Real>& walk, int64_t tile, const Factor* lanes,
                                   Vec<Real> (&starts)[kTile / kWidth<Real>]) {
  constexpr int NR = kNR<Factor>, W = kWidth<Real>, per_factor = kPerFactor<Factor>;
  using V = Vec<Real>;
  if (walk.heaviest < 0) return;
  const int64_t D = walk.size.embed_factors;
  const TileBias<Real>& own = walk.tile_bias[tile];
  const BiasParts<Real> of_heaviest = bias_parts<Real>(broadcast<V>(walk.bias[walk.heaviest]));
  V squares[kTile / W], products[kTile / W];
  for (int n = 0; n < kTile; n += W) {
    const V rest = load<V>(own.rest + n);
    squares[n / W] = rest + rest;
    products[n / W] = rest + of_heaviest.rest;
  }
  with_type(walk.psi.dtype, [&](auto* type) {
    const auto* psi = static_cast<decltype(type)>(walk.psi.data) + walk.heaviest * walk.psi.node_stride;
    for (int64_t c = 0; c < D; ++c) {
      Factor factor = {};
      for (int x = 0; x < per_factor && c * per_factor + x < walk.size.embed; ++x)
        narrow(widen<Real>(psi[(c * per_factor + x) * walk.psi.channel_stride]), numbers(&factor)[x]);
      const Vec<Factor> heaviest = broadcast<Vec<Factor>>(factor);
      for (int n = 0; n < kTile; n += W) {
        const Vec<Factor> x = load<Vec<Factor>>(lanes + (n / NR * D + c) * NR + n % NR);
        squares[n / W] = Factors<Factor>::multiply_add(squares[n / W], x, x);
        products[n / W] = Factors<Factor>::multiply_add(products[n / W], x, heaviest);
      }
    }
  });
  for (int n = 0; n < kTile; n += W)
    starts[n / W] = larger(products[n / W] + of_heaviest.whole, squares[n / W] + load<V>(own.whole + n));
}

}  // namespace difnet::cpu::DIFNET_ISA
