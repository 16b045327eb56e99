// The two matrix products of a walk, sized to live in registers.
//
// Lane block: kLanes consecutive nodes side by side in two registers; fields in lane blocks are stored [block][channel]
// [lane], so one channel of a block is two loads and one channel of one node is a broadcast from the same array.
//
// Factor: what is multiplied, 32 or 64 bits wide. Real is one number; a Pair (pairs.h) is two, and then each layout below
// holds the numbers of two neighbouring channels (lane blocks), or of two neighbouring nodes (panels, weights) in one place.
#pragma once

#include "simd.h"
#include "walk.h"

namespace difnet::DIFNET_ISA {

template <typename Factor>
struct Factors {
  using Number = Factor;
  using Sum = Factor;
  static constexpr int kTogether = 1;  // numbers in a factor

  // sum + x y
  template <typename V>
  static DIFNET_MEMBER V multiply_add(V sum, V x, V y) {
    return sum + x * y;
  }
  // Factors of the numbers that stand in the same lane.
  static DIFNET_MEMBER Vec<Factor> of_lanes(const Vec<Factor> (&numbers)[kTogether]) { return numbers[0]; }
  // Factors of the numbers of neighbouring lanes, of a lane block in two registers.
  static DIFNET_MEMBER void store_neighbours(Factor* to, const Vec<Factor> (&numbers)[2]) {
    store(to, numbers[0]);
    store(to + kWidth<Factor>, numbers[1]);
  }
};

template <typename Factor>
inline constexpr int kTogether = Factors<Factor>::kTogether;

template <typename Factor>
using Sum = typename Factors<Factor>::Sum;

// The numbers that factors consist of, in their order.
template <typename Factor>
DIFNET_INLINE auto* numbers(Factor* factors) {
  return reinterpret_cast<typename Factors<Factor>::Number*>(factors);
}
template <typename Factor>
DIFNET_INLINE const auto* numbers(const Factor* factors) {
  return reinterpret_cast<const typename Factors<Factor>::Number*>(factors);
}

template <typename Real>
inline constexpr int kLanes = 2 * kWidth<Real>;

// Columns of a strip: with two registers of lanes each, as many accumulators as the register file holds.
inline constexpr int kStrip = kRegisters >= 32 ? 8 : 4;

template <typename Real>
struct Strip {
  Vec<Real> at[kStrip][2];  // [column j][half of the lane block]
};

// Which of the numbers of a tile in lane blocks is channel c of node n.
template <typename Factor>
DIFNET_INLINE int64_t in_lanes(int64_t factors, int64_t n, int64_t c) {
  constexpr int L = kLanes<Factor>, together = kTogether<Factor>;
  return ((n / L * factors + c / together) * L + n % L) * together + c % together;
}

// strip[j][i] = start[j][i] + sum over c of rows[c][i] * columns[c][j]: the inner products of a lane block of nodes i with
// kStrip neighbouring nodes j. The sum runs over c in order, one multiply-add each, so forward and backward round alike.
template <typename Factor>
DIFNET_INLINE void inner_products(const Factor* rows, const Factor* columns, int64_t factors,
                                  Strip<Sum<Factor>>& strip) {
  using F = Vec<Factor>;
  using With = Factors<Factor>;
  for (int64_t c = 0; c < factors; ++c) {
    const F low = load<F>(rows + c * kLanes<Factor>), high = load<F>(rows + c * kLanes<Factor> + kWidth<Factor>);
#pragma GCC unroll 8
    for (int j = 0; j < kStrip; ++j) {
      const F column = broadcast<F>(columns[c * kLanes<Factor> + j]);
      strip.at[j][0] = With::multiply_add(strip.at[j][0], low, column);
      strip.at[j][1] = With::multiply_add(strip.at[j][1], high, column);
    }
  }
}

// Channels are computed in multiples of this: half a register where registers are wide enough to halve.
template <typename Real>
inline constexpr int kChannelUnit = kWidth<Real> >= 8 ? kWidth<Real> / 2 : kWidth<Real>;

// Fields and sums that `accumulate` works on are stored in panels of kPanel channels, [panel][node][kPanel]: a panel of a
// tile is one stream of memory that stays in the first-level cache.
template <typename Real>
inline constexpr int kPanel = 2 * kWidth<Real>;

// The same in panels.
template <typename Factor>
DIFNET_INLINE int64_t in_rows(int64_t n, int64_t c) {
  constexpr int together = kTogether<Factor>;
  const int64_t row = c / kPanel<Factor> * (kTile / together) + n / together;
  return (row * kPanel<Factor> + c % kPanel<Factor>)*together + n % together;
}

// The part of a panel that carries channels: `Full` registers and, if Half, half a register more.
template <int Full, bool Half>
struct Part {};

// body(part, offset of the panel) for the panels that cover `columns` channels, a multiple of kChannelUnit.
template <typename Real, typename Body>
DIFNET_INLINE void for_each_panel(int64_t columns, Body body) {
  constexpr int W = kWidth<Real>, unit = kChannelUnit<Real>;
  constexpr bool halves = unit < W;
  for (int64_t offset = 0; columns > 0; columns -= kPanel<Real>, offset += kTile * kPanel<Real>) {
    if (columns > W + (halves ? unit : 0))
      body(Part<2, false>(), offset);
    else if (columns > W)
      body(Part<1, halves>(), offset);
    else if (columns > unit || !halves)
      body(Part<1, false>(), offset);
    else
      body(Part<0, halves>(), offset);
  }
}

// A term of `accumulate`: kStrip inner indices, their weights and their rows of the field.
template <typename Factor>
struct Term {
  const Factor *weights, *field;
};

// out[kStrip nodes][part] += the sum of the terms, element (row, inner) of whose weights is at
// weights[row * RowStride + inner * InnerStride]. The strides are compile-time constants because as variables they cost
// the inner loop its registers.
template <int RowStride, int InnerStride, int Full, bool Half, typename Factor, typename Real = Sum<Factor>>
DIFNET_INLINE void accumulate(Part<Full, Half>, Real* out, const Term<Factor>* terms, int count, int64_t weight_offset,
                              int64_t field_offset) {
  constexpr int half_bytes = Half ? kRegisterBytes / 2 : kRegisterBytes;
  using V = Vec<Real>;
  using H = Vec<Real, half_bytes>;
  using VF = Vec<Factor>;
  using HF = Vec<Factor, half_bytes>;
  using With = Factors<Factor>;
  constexpr int W = kWidth<Real>, stride = kPanel<Real>;
  V sum[kStrip][Full > 0 ? Full : 1] =
      {};  // a tile's own sum first: N terms one by one would round sqrt(64) times worse
  H half[kStrip] = {};
  for (const Term<Factor>* term = terms; term < terms + count; ++term) {
    const Factor *weight = term->weights + weight_offset, *row = term->field + field_offset;
    for (int c = 0; c < kStrip; c += kTogether<Factor>, row += stride, weight += InnerStride) {
      VF channel[Full > 0 ? Full : 1];
      HF last;
#pragma GCC unroll 4
      for (int v = 0; v < Full; ++v) channel[v] = load<VF>(row + v * W);
      if constexpr (Half) last = load<HF>(row + Full * W);
#pragma GCC unroll 8
      for (int r = 0; r < kStrip; ++r) {
        const VF w = broadcast<VF>(weight[r * RowStride]);
#pragma GCC unroll 4
        for (int v = 0; v < Full; ++v) sum[r][v] = With::multiply_add(sum[r][v], w, channel[v]);
        if constexpr (Half) half[r] = With::multiply_add(half[r], first_half<Factor>(w), last);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kStrip; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Full; ++v) {
      Real* to = out + r * stride + v * W;
      store(to, load<V>(to) + sum[r][v]);
    }
    if constexpr (Half) store(out + r * stride + Full * W, load<H>(out + r * stride + Full * W) + half[r]);
  }
}

// The weights of a slot, [j][i], as factors: of neighbouring nodes j, and of neighbouring nodes i.
template <typename Factor>
DIFNET_INLINE void row_factors(const Sum<Factor>* slot, Factor* to) {
  constexpr int L = kLanes<Factor>, W = kWidth<Factor>, together = kTogether<Factor>;
  for (int at = 0; at < kStrip * L; at += together * L, to += L)
    for (int half = 0; half < L; half += W) {
      Vec<Sum<Factor>> numbers[together];
      for (int n = 0; n < together; ++n) numbers[n] = load<Vec<Sum<Factor>>>(slot + at + n * L + half);
      store(to + half, Factors<Factor>::of_lanes(numbers));
    }
}
template <typename Factor>
DIFNET_INLINE void column_factors(const Sum<Factor>* slot, Factor* to) {
  using V = Vec<Sum<Factor>>;
  constexpr int L = kLanes<Factor>;
  for (int c = 0; c < kStrip; ++c, slot += L, to += L / kTogether<Factor>) {
    const V numbers[2] = {load<V>(slot), load<V>(slot + L / 2)};
    Factors<Factor>::store_neighbours(to, numbers);
  }
}

// Weights of a tile of nodes i against a tile of nodes j, in slots [lane block of i][strip of j]; a slot is [j][i], its
// factors hold neighbouring j to be summed into rows and neighbouring i to be summed into columns. A slot without weight is
// left out of every sum. Panels are the outer loop: one panel of a field stays in the first-level cache while all weights
// pass by.
template <typename Factor>
struct Slots {
  using Real = Sum<Factor>;
  static constexpr int together = kTogether<Factor>;
  static constexpr int L = kLanes<Factor>, kBlocks = kTile / L, kStrips = kTile / kStrip, kSize = kStrip * L / together;
  static constexpr int64_t slot(int64_t block, int64_t strip) { return (block * kStrips + strip) * kSize; }

  bool live[kBlocks][kStrips];

  // sums[i] += sum over j of weights[i][j] field[j]
  DIFNET_MEMBER void add_rows(const Factor* weights, const Factor* field, int64_t columns, Real* sums) const {
    Term<Factor> terms[kBlocks][kStrips];
    int count[kBlocks] = {};
    for (int block = 0; block < kBlocks; ++block)
      for (int strip = 0; strip < kStrips; ++strip)
        if (live[block][strip])
          terms[block][count[block]++] = {weights + slot(block, strip),
                                          field + strip * (kStrip / together) * kPanel<Factor>};
    for_each_panel<Real>(columns, [&](auto part, int64_t panel) __attribute__((always_inline)) {
      for (int block = 0; block < kBlocks; ++block)
        for (int row = 0; row < L && count[block] > 0; row += kStrip)
          accumulate<1, L>(part, sums + panel + (block * L + row) * kPanel<Real>, terms[block], count[block], row,
                           panel / together);
    });
  }

  // sums[j] += sum over i of weights[i][j] field[i]
  DIFNET_MEMBER void add_columns(const Factor* weights, const Factor* field, int64_t columns, Real* sums) const {
    Term<Factor> terms[kStrips][kTile / kStrip];
    int count[kStrips] = {};
    for (int strip = 0; strip < kStrips; ++strip)
      for (int block = 0; block < kBlocks; ++block)
        for (int i = 0; i < L && live[block][strip]; i += kStrip)
          terms[strip][count[strip]++] = {weights + slot(block, strip) + i / together,
                                          field + (block * L + i) / together * kPanel<Factor>};
    for_each_panel<Real>(columns, [&](auto part, int64_t panel) __attribute__((always_inline)) {
      for (int strip = 0; strip < kStrips; ++strip)
        if (count[strip] > 0)
          accumulate<L / together, 1>(part, sums + panel + strip * kStrip * kPanel<Real>, terms[strip], count[strip], 0,
                                      panel / together);
    });
  }
};

}  // namespace difnet::DIFNET_ISA
