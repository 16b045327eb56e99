// The two matrix products of a walk, sized to live in registers. This is the seam where a matrix engine enters: an
// instruction set that has one brings its own Factors (products_bf16.h is an example), or its own `inner_products`,
// `sum_rows` and `sum_columns` on the layouts of layouts.h.
//
//   inner products (W1)         S[j][i] = sum over channels c of psi_i[c] psi_j[c]: node panels times node panels
//   sums of weighted rows (W2)  sums[i] = sum over nodes j of weights[i][j] field[j]: weights times channel panels
#pragma once

#include "cpu/layouts.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Factor>
struct Factors {
  using Number = Factor;
  using Sum = Factor;
  static constexpr int kPerFactor = 1;

  // sum + x y
  template <typename V>
  static DIFNET_MEMBER V multiply_add(V sum, V x, V y) {
    return sum + x * y;
  }
  // Number `which` of each lane.
  template <typename V>
  static DIFNET_MEMBER V number(V x, int) {
    return x;
  }
  // Factors of the numbers that stand in the same lane.
  static DIFNET_MEMBER Vec<Factor> of_lanes(const Vec<Factor> (&numbers)[kPerFactor]) { return numbers[0]; }
  // Factors of the numbers of neighbouring lanes, of kNR numbers in two registers.
  static DIFNET_MEMBER void store_neighbours(Factor* to, const Vec<Factor> (&numbers)[2]) {
    store(to, numbers[0]);
    store(to + kWidth<Factor>, numbers[1]);
  }
};

// The kMR x kNR numbers that a micro-kernel keeps in registers.
template <typename Real>
struct MicroTile {
  Vec<Real> at[kMR][2];  // [node j][half of the panel of nodes i]
};

// micro[j][i] += sum over c of panel[c][i] * nodes[c][j]: the inner products of a panel of nodes i with kMR
// neighbouring nodes j. The sum runs over c in order, one multiply-add each, so forward and backward round alike.
template <typename Factor>
DIFNET_INLINE void inner_products(const Factor* panel, const Factor* nodes, int64_t factors,
                                  MicroTile<Sum<Factor>>& micro) {
  using F = Vec<Factor>;
  using Multiply = Factors<Factor>;
  for (int64_t c = 0; c < factors; ++c) {
    const F low = load<F>(panel + c * kNR<Factor>), high = load<F>(panel + c * kNR<Factor> + kWidth<Factor>);
#pragma GCC unroll 8
    for (int j = 0; j < kMR; ++j) {
      const F node = broadcast<F>(nodes[c * kNR<Factor> + j]);
      micro.at[j][0] = Multiply::multiply_add(micro.at[j][0], low, node);
      micro.at[j][1] = Multiply::multiply_add(micro.at[j][1], high, node);
    }
  }
}

// The registers of a panel that carry channels: `Full` and, if Half, half of one more.
template <int Full, bool Half>
struct Columns {};

// body(registers, offset of the panel) for the panels that cover `columns` channels, a multiple of kChannelUnit.
template <typename Real, typename Body>
DIFNET_INLINE void for_each_panel(int64_t columns, Body body) {
  constexpr int W = kWidth<Real>, unit = kChannelUnit<Real>;
  constexpr bool halves = unit < W;
  for (int64_t offset = 0; columns > 0; columns -= kNR<Real>, offset += kTile * kNR<Real>) {
    if (columns > W + (halves ? unit : 0))
      body(Columns<2, false>(), offset);
    else if (columns > W)
      body(Columns<1, halves>(), offset);
    else if (columns > unit || !halves)
      body(Columns<1, false>(), offset);
    else
      body(Columns<0, halves>(), offset);
  }
}

// Operands of `weighted_sums`: kMR inner indices, their weights and their rows of the field.
template <typename Factor>
struct Operands {
  const Factor *weights, *field;
};

// out[kMR nodes][columns] = the sum over the operands, element (row, inner) of whose weights is at
// weights[row * RowStride + inner * InnerStride]. The strides are compile-time constants because as variables they cost
// the inner loop its registers.
template <int RowStride, int InnerStride, int Full, bool Half, typename Factor, typename Real = Sum<Factor>>
DIFNET_INLINE void weighted_sums(Columns<Full, Half>, Real* out, const Operands<Factor>* operands, int count,
                                 int64_t weight_offset, int64_t field_offset) {
  constexpr int half_bytes = Half ? kRegisterBytes / 2 : kRegisterBytes;
  using V = Vec<Real>;
  using H = Vec<Real, half_bytes>;
  using VF = Vec<Factor>;
  using HF = Vec<Factor, half_bytes>;
  using Multiply = Factors<Factor>;
  constexpr int W = kWidth<Real>, stride = kNR<Real>;
  V sum[kMR][Full > 0 ? Full : 1] = {};
  H half[kMR] = {};
  for (const Operands<Factor>* each = operands; each < operands + count; ++each) {
    const Factor *weight = each->weights + weight_offset, *row = each->field + field_offset;
    for (int c = 0; c < kMR; c += kPerFactor<Factor>, row += stride, weight += InnerStride) {
      VF channel[Full > 0 ? Full : 1];
      HF last;
#pragma GCC unroll 4
      for (int v = 0; v < Full; ++v) channel[v] = load<VF>(row + v * W);
      if constexpr (Half) last = load<HF>(row + Full * W);
#pragma GCC unroll 8
      for (int r = 0; r < kMR; ++r) {
        const VF w = broadcast<VF>(weight[r * RowStride]);
#pragma GCC unroll 4
        for (int v = 0; v < Full; ++v) sum[r][v] = Multiply::multiply_add(sum[r][v], w, channel[v]);
        if constexpr (Half) half[r] = Multiply::multiply_add(half[r], first_half<Factor>(w), last);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kMR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Full; ++v) store(out + r * stride + v * W, sum[r][v]);
    if constexpr (Half) store(out + r * stride + Full * W, half[r]);
  }
}

// For kRowGroup rows of a panel: to += from.
template <int Full, bool Half, typename Real>
DIFNET_INLINE void add_rows(Columns<Full, Half>, const Real* from, Real* to) {
  constexpr int half_bytes = Half ? kRegisterBytes / 2 : kRegisterBytes;
  using V = Vec<Real>;
  using H = Vec<Real, half_bytes>;
#pragma GCC unroll 4
  for (int row = 0; row < kRowGroup; ++row, from += kNR<Real>, to += kNR<Real>) {
#pragma GCC unroll 4
    for (int at = 0; at < Full * kWidth<Real>; at += kWidth<Real>)
      store(to + at, load<V>(to + at) + load<V>(from + at));
    constexpr int last = Full * kWidth<Real>;
    if constexpr (Half) store(to + last, load<H>(to + last) + load<H>(from + last));
  }
}

// sums[rows][columns] += fresh[rows][columns] for the rows of a tile whose bit in `written` is set, one for kRowGroup.
// A tile's own sum comes first: N terms one by one would round sqrt(64) times worse.
template <typename Real>
DIFNET_INLINE void add_sums(const Real* fresh, uint64_t written, int64_t columns, Real* sums) {
  for_each_panel<Real>(columns, [&](auto registers, int64_t panel) __attribute__((always_inline)) {
    for (int group = 0; group < kTile / kRowGroup; ++group, panel += kRowGroup * kNR<Real>)
      if ((written >> group & 1) != 0) add_rows(registers, fresh + panel, sums + panel);
  });
}

// A micro-tile of weights, [j][i], as factors: of neighbouring nodes j, to be summed over j, or of neighbouring nodes
// i.
template <typename Factor>
DIFNET_INLINE void pair_rows(const Sum<Factor>* micro, Factor* to) {
  constexpr int L = kNR<Factor>, W = kWidth<Factor>, per_factor = kPerFactor<Factor>;
  for (int at = 0; at < kMR * L; at += per_factor * L, to += L)
    for (int half = 0; half < L; half += W) {
      Vec<Sum<Factor>> numbers[per_factor];
      for (int n = 0; n < per_factor; ++n) numbers[n] = load<Vec<Sum<Factor>>>(micro + at + n * L + half);
      store(to + half, Factors<Factor>::of_lanes(numbers));
    }
}
template <typename Factor>
DIFNET_INLINE void pair_columns(const Sum<Factor>* micro, Factor* to) {
  using V = Vec<Sum<Factor>>;
  constexpr int L = kNR<Factor>;
  for (int c = 0; c < kMR; ++c, micro += L, to += L / kPerFactor<Factor>) {
    const V numbers[2] = {load<V>(micro), load<V>(micro + L / 2)};
    Factors<Factor>::store_neighbours(to, numbers);
  }
}

// Weights of a tile of nodes i against a tile of nodes j, as micro-tiles [panel of nodes i][kMR nodes j], each [j][i].
// One that is not in the mask is left out of every sum. Channel panels are the outer loop: one panel of a field stays
// in the first-level cache while all weights pass by.
template <typename Factor>
struct WeightTile {
  using Real = Sum<Factor>;
  static constexpr int per_factor = kPerFactor<Factor>;
  static constexpr int L = kNR<Factor>, kPanelsI = kTile / L, kPanelsJ = kTile / kMR, kSize = kMR * L / per_factor;
  static constexpr int64_t micro_tile(int64_t i, int64_t j) { return (i * kPanelsJ + j) * kSize; }

  bool mask[kPanelsI][kPanelsJ];

  // The rows i, and the rows j, that any weight is summed into: a bit for every kRowGroup of them.
  DIFNET_MEMBER uint64_t rows() const {
    uint64_t rows = 0;
    for (int i = 0; i < kPanelsI; ++i)
      for (int j = 0; j < kPanelsJ; ++j)
        if (mask[i][j]) rows |= ((uint64_t(1) << L / kRowGroup) - 1) << i * L / kRowGroup;
    return rows;
  }
  DIFNET_MEMBER uint64_t columns() const {
    uint64_t columns = 0;
    for (int i = 0; i < kPanelsI; ++i)
      for (int j = 0; j < kPanelsJ; ++j)
        if (mask[i][j]) columns |= ((uint64_t(1) << kMR / kRowGroup) - 1) << j * kMR / kRowGroup;
    return columns;
  }

  // sums[i] = sum over j of weights[i][j] field[j], for the rows i that have weights
  DIFNET_MEMBER void sum_rows(const Factor* weights, const Factor* field, int64_t columns, Real* sums) const {
    Operands<Factor> operands[kPanelsI][kPanelsJ];
    int count[kPanelsI] = {};
    for (int i = 0; i < kPanelsI; ++i)
      for (int j = 0; j < kPanelsJ; ++j)
        if (mask[i][j])
          operands[i][count[i]++] = {weights + micro_tile(i, j), field + j * (kMR / per_factor) * kNR<Factor>};
    for_each_panel<Real>(columns, [&](auto registers, int64_t panel) __attribute__((always_inline)) {
      for (int i = 0; i < kPanelsI; ++i)
        for (int row = 0; row < L && count[i] > 0; row += kMR)
          weighted_sums<1, L>(registers, sums + panel + (i * L + row) * kNR<Real>, operands[i], count[i], row,
                              panel / per_factor);
    });
  }

  // sums[j] = sum over i of weights[i][j] field[i], for the rows j that have weights
  DIFNET_MEMBER void sum_columns(const Factor* weights, const Factor* field, int64_t columns, Real* sums) const {
    Operands<Factor> operands[kPanelsJ][kTile / kMR];
    int count[kPanelsJ] = {};
    for (int j = 0; j < kPanelsJ; ++j)
      for (int i = 0; i < kPanelsI; ++i)
        for (int row = 0; row < L && mask[i][j]; row += kMR)
          operands[j][count[j]++] = {weights + micro_tile(i, j) + row / per_factor,
                                     field + (i * L + row) / per_factor * kNR<Factor>};
    for_each_panel<Real>(columns, [&](auto registers, int64_t panel) __attribute__((always_inline)) {
      for (int j = 0; j < kPanelsJ; ++j)
        if (count[j] > 0)
          weighted_sums<L / per_factor, 1>(registers, sums + panel + j * kMR * kNR<Real>, operands[j], count[j], 0,
                                           panel / per_factor);
    });
  }
};

}  // namespace difnet::cpu::DIFNET_ISA
