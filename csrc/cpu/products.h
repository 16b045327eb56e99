// The two matrix products of a walk, sized to live in registers.
//
// Lane block: kLanes consecutive nodes side by side in two registers; fields in lane blocks are stored [block][channel]
// [lane], so one channel of a block is two loads and one channel of one node is a broadcast from the same array.
#pragma once

#include "simd.h"
#include "walk.h"

namespace difnet::DIFNET_ISA {

template <typename Real>
inline constexpr int kLanes = 2 * kWidth<Real>;

// Columns of a strip: with two registers of lanes each, as many accumulators as the register file holds.
inline constexpr int kStrip = kRegisters >= 32 ? 8 : 4;

template <typename Real>
struct Strip {
  Vec<Real> at[kStrip][2];  // [column j][half of the lane block]
};

// strip[j][i] = start[j][i] + sum over c of rows[c][i] * columns[c][j]: the inner products of a lane block of nodes i with
// kStrip neighbouring nodes j. The sum runs over c in order, one multiply-add each, so forward and backward round alike.
template <typename Real>
DIFNET_INLINE void inner_products(const Real* rows, const Real* columns, int64_t channels, Strip<Real>& strip) {
  using V = Vec<Real>;
  for (int64_t c = 0; c < channels; ++c) {
    const V low = load<V>(rows + c * kLanes<Real>), high = load<V>(rows + c * kLanes<Real> + kWidth<Real>);
#pragma GCC unroll 8
    for (int j = 0; j < kStrip; ++j) {
      const V column = broadcast<V>(columns[c * kLanes<Real> + j]);
      strip.at[j][0] += low * column;
      strip.at[j][1] += high * column;
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

// Where channel c of node n of a tile is stored.
template <typename Real>
DIFNET_INLINE int64_t in_rows(int64_t n, int64_t c) {
  return (c / kPanel<Real> * kTile + n) * kPanel<Real> + c % kPanel<Real>;
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
template <typename Real>
struct Term {
  const Real *weights, *field;
};

// out[kStrip nodes][part] += the sum of the terms, element (row, inner) of whose weights is at
// weights[row * RowStride + inner * InnerStride]. The strides are compile-time constants because as variables they cost
// the inner loop its registers.
template <int RowStride, int InnerStride, int Full, bool Half, typename Real>
DIFNET_INLINE void accumulate(Part<Full, Half>, Real* out, const Term<Real>* terms, int count, int64_t weight_offset,
                              int64_t field_offset) {
  using V = Vec<Real>;
  using H = Vec<Real, Half ? kRegisterBytes / 2 : kRegisterBytes>;
  constexpr int W = kWidth<Real>, stride = kPanel<Real>;
  V sum[kStrip][Full > 0 ? Full : 1] =
      {};  // a tile's own sum first: N terms one by one would round sqrt(64) times worse
  H half[kStrip] = {};
  for (const Term<Real>* term = terms; term < terms + count; ++term) {
    const Real *weight = term->weights + weight_offset, *row = term->field + field_offset;
    for (int c = 0; c < kStrip; ++c, row += stride, weight += InnerStride) {
      V channel[Full > 0 ? Full : 1];
      H last;
#pragma GCC unroll 4
      for (int v = 0; v < Full; ++v) channel[v] = load<V>(row + v * W);
      if constexpr (Half) last = load<H>(row + Full * W);
#pragma GCC unroll 8
      for (int r = 0; r < kStrip; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Full; ++v) sum[r][v] += broadcast<V>(weight[r * RowStride]) * channel[v];
        if constexpr (Half) half[r] += broadcast<H>(weight[r * RowStride]) * last;
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

// Weights of a tile of nodes i against a tile of nodes j, in slots [lane block of i][strip of j]; a slot is [j][i]. A slot
// without weight is left out of every sum. Panels are the outer loop: one panel of a field stays in the first-level cache
// while all weights pass by.
template <typename Real>
struct Slots {
  static constexpr int L = kLanes<Real>, kBlocks = kTile / L, kStrips = kTile / kStrip, kSize = kStrip * L;
  static constexpr int64_t slot(int64_t block, int64_t strip) { return (block * kStrips + strip) * kSize; }

  bool live[kBlocks][kStrips];

  // sums[i] += sum over j of weights[i][j] field[j]
  DIFNET_MEMBER void add_rows(const Real* weights, const Real* field, int64_t columns, Real* sums) const {
    Term<Real> terms[kBlocks][kStrips];
    int count[kBlocks] = {};
    for (int block = 0; block < kBlocks; ++block)
      for (int strip = 0; strip < kStrips; ++strip)
        if (live[block][strip])
          terms[block][count[block]++] = {weights + slot(block, strip), field + strip * kStrip * kPanel<Real>};
    for_each_panel<Real>(columns, [&](auto part, int64_t panel) __attribute__((always_inline)) {
      for (int block = 0; block < kBlocks; ++block)
        for (int row = 0; row < L && count[block] > 0; row += kStrip)
          accumulate<1, L>(part, sums + panel + (block * L + row) * kPanel<Real>, terms[block], count[block], row,
                           panel);
    });
  }

  // sums[j] += sum over i of weights[i][j] field[i]
  DIFNET_MEMBER void add_columns(const Real* weights, const Real* field, int64_t columns, Real* sums) const {
    Term<Real> terms[kStrips][kTile / kStrip];
    int count[kStrips] = {};
    for (int strip = 0; strip < kStrips; ++strip)
      for (int block = 0; block < kBlocks; ++block)
        for (int i = 0; i < L && live[block][strip]; i += kStrip)
          terms[strip][count[strip]++] = {weights + slot(block, strip) + i, field + (block * L + i) * kPanel<Real>};
    for_each_panel<Real>(columns, [&](auto part, int64_t panel) __attribute__((always_inline)) {
      for (int strip = 0; strip < kStrips; ++strip)
        if (count[strip] > 0)
          accumulate<L, 1>(part, sums + panel + strip * kStrip * kPanel<Real>, terms[strip], count[strip], 0, panel);
    });
  }
};

}  // namespace difnet::DIFNET_ISA
