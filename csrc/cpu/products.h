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

// A term of `accumulate`: kStrip inner indices, their weights and their rows of the field. Element (row, inner) of the
// weights is at weights[row * RowStride + inner * InnerStride]. The strides are compile-time constants because as
// variables they cost the inner loop its registers.
template <typename Real>
struct Term {
  const Real *weights, *field;
};

// out[kStrip rows][panel] += the sum of the terms, for a panel of `Full` registers and, if Half, half a register more.
template <int RowStride, int InnerStride, int Full, bool Half, typename Real>
DIFNET_INLINE void accumulate_panel(Real* out, int64_t out_stride, const Term<Real>* terms, int count, int64_t field_stride,
                             int64_t column) {
  using V = Vec<Real>;
  using H = Vec<Real, Half ? kRegisterBytes / 2 : kRegisterBytes>;
  constexpr int W = kWidth<Real>;
  V sum[kStrip][Full > 0 ? Full : 1];
  H half[kStrip];
  out += column;
#pragma GCC unroll 8
  for (int r = 0; r < kStrip; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Full; ++v) sum[r][v] = load<V>(out + r * out_stride + v * W);
    if constexpr (Half) half[r] = load<H>(out + r * out_stride + Full * W);
  }
  for (const Term<Real>* term = terms; term < terms + count; ++term) {
    const Real *weight = term->weights, *row = term->field + column;
    for (int c = 0; c < kStrip; ++c, row += field_stride, weight += InnerStride) {
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
    for (int v = 0; v < Full; ++v) store(out + r * out_stride + v * W, sum[r][v]);
    if constexpr (Half) store(out + r * out_stride + Full * W, half[r]);
  }
}

// Channels are computed in multiples of this: half a register where registers are wide enough to halve.
template <typename Real>
inline constexpr int kChannelUnit = kWidth<Real> >= 8 ? kWidth<Real> / 2 : kWidth<Real>;

// out[kStrip rows][channels] += the sum of the terms, for any number of channels (a multiple of kChannelUnit).
template <int RowStride, int InnerStride, typename Real>
DIFNET_INLINE void accumulate(Real* out, int64_t out_stride, const Term<Real>* terms, int count, int64_t field_stride,
                       int64_t channels) {
  constexpr int W = kWidth<Real>, R = RowStride, I = InnerStride;
  constexpr bool kHalves = kChannelUnit<Real> < W;
  for (int64_t done = 0; done < channels;) {
    if (channels - done >= 2 * W) {
      accumulate_panel<R, I, 2, false>(out, out_stride, terms, count, field_stride, done);
      done += 2 * W;
    } else if (kHalves && channels - done >= W + kChannelUnit<Real>) {
      accumulate_panel<R, I, 1, kHalves>(out, out_stride, terms, count, field_stride, done);
      done += W + kChannelUnit<Real>;
    } else if (channels - done >= W) {
      accumulate_panel<R, I, 1, false>(out, out_stride, terms, count, field_stride, done);
      done += W;
    } else {
      accumulate_panel<R, I, 0, kHalves>(out, out_stride, terms, count, field_stride, done);
      done += kChannelUnit<Real>;
    }
  }
}

// Weights of a tile of nodes i against a tile of nodes j, in slots [lane block of i][strip of j]; a slot is [j][i]. A slot
// without weight is left out of every sum.
template <typename Real>
struct Slots {
  static constexpr int L = kLanes<Real>, kBlocks = kTile / L, kStrips = kTile / kStrip, kSize = kStrip * L;
  static constexpr int64_t slot(int64_t block, int64_t strip) { return (block * kStrips + strip) * kSize; }

  bool live[kBlocks][kStrips];

  // out[nodes i] += sum over j of weights[i][j] field[j], for lane block `block`
  DIFNET_MEMBER void add_rows(int block, const Real* weights, const Real* field, int64_t stride, int64_t channels,
                       Real* out) const {
    Term<Real> terms[kStrips];
    int count = 0;
    for (int s = 0; s < kStrips; ++s)
      if (live[block][s]) terms[count++] = {weights + slot(block, s), field + s * kStrip * stride};
    if (count == 0) return;
    for (int row = 0; row < L; row += kStrip) {
      accumulate<1, L>(out + (block * L + row) * stride, stride, terms, count, stride, channels);
      for (int s = 0; s < count; ++s) terms[s].weights += kStrip;
    }
  }

  // out[nodes j] += sum over i of weights[i][j] field[i], for strip `strip`
  DIFNET_MEMBER void add_columns(int strip, const Real* weights, const Real* field, int64_t stride, int64_t channels,
                          Real* out) const {
    Term<Real> terms[kTile / kStrip];
    int count = 0;
    for (int block = 0; block < kBlocks; ++block)
      if (live[block][strip])
        for (int i = 0; i < L; i += kStrip)
          terms[count++] = {weights + slot(block, strip) + i, field + (block * L + i) * stride};
    if (count > 0) accumulate<L, 1>(out + strip * kStrip * stride, stride, terms, count, stride, channels);
  }
};

}  // namespace difnet::DIFNET_ISA
