// What both directions of a walk on a matrix unit share: how many products of parts each product takes, where a tile's
// operands lie, and the logits of a block.
//
// A tile whose logits are not finite or not in range, or whose numbers are out of the range of parts (one below 2^-126 is
// zero), stays with the vector kernels. Of psi both directions ask the same, so that they have their logits from the same
// instruction. NaN and infinity in y and h reach their class alone, as a column of an operand.
#pragma once

#include "cpu/exponential.h"
#include "cpu/unit/blocks.h"
#include "cpu/walk/logits.h"

namespace difnet::cpu::DIFNET_ISA {

// The products of a walk as sums of products of parts. A is the first factor; of two sums over nodes, those into rows
// have the weights as A, and those into columns as B (`turned`).
struct Scheme {
  Order S;                      // psi psi
  Order walked, walked_turned;  // (W2) P y
  Order hy;                     // (B4) h y
  Order psi, psi_turned;        // (B5) T psi
  Order state, state_turned;    // (B6) P h
};
// 24 digits where an error is one of a weight; P has its third part for the row sum, whose logarithm is a result (lse).
inline constexpr Scheme kHigh = {kSix, kSix, kSix, kSix, kThree, kThree, kSix, kSix};
// 16 digits everywhere.
inline constexpr Scheme kMedium = {kThree, kThree, kThree, kThree, kThree, kThree, kThree, kThree};
// Fields that have as many digits as one part, as the kernels of products_bf16.h; two parts hold those of fp16.
inline constexpr Scheme kOfBf16 = {kOne, kOne, kOne, kThree, kOne, kOne, kOne, kOne};
inline constexpr Scheme kOfFp16 = {kFour, kThree, kThree, kThree, kThree, kThree, kThree, kThree};

inline constexpr int64_t kPlain = 16;  // places in front of the operands of a tile: whether the unit may multiply them

// Whether each of `rows` rows, a multiple of kWidth, is zero, or not finite, or has a number whose parts are normal:
// read(n, row) is that of node n for kWidth rows.
template <typename Read>
DIFNET_INLINE bool in_range_of_parts(int64_t rows, Read read) {
  using V = Vec<float>;
  const V least = broadcast<V>(0x1p-100f), most = broadcast<V>(0x1p120f), zero = {};
  const V infinity = broadcast<V>(__builtin_inff());
  for (int64_t row = 0; row < rows; row += kWidth<float>) {
    V largest = {};
    for (int n = 0; n < kTile; ++n) {
      const V x = read(n, row);
      largest = larger(largest, x < zero ? -x : x);
    }
    const auto outside = ((largest < least) & (largest > zero)) | ((largest > most) & (largest < infinity));
    for (int lane = 0; lane < kWidth<float>; ++lane)
      if (outside[lane] != 0) return false;
  }
  return true;
}

// kWidth nodes of a channel, of a tile in node panels; zero where there is no such channel.
DIFNET_INLINE Vec<float> read_node_panels(const float* panels, int64_t channels, int64_t channel, int64_t node) {
  return channel < channels ? load<Vec<float>>(panels + in_node_panels<float>(channels, node, channel)) : Vec<float>{};
}
// kWidth channels of a node, of a tile in channel panels.
DIFNET_INLINE Vec<float> read_channel_panels(const float* panels, int64_t stored, int64_t channel, int64_t node) {
  return channel < stored ? load<Vec<float>>(panels + in_channel_panels<float>(node, channel)) : Vec<float>{};
}

// A block of logits or of weights: 32 nodes i of tile a from node `i` on, 32 nodes j of tile b.
struct BlockOf {
  int64_t a, b;
  int i, j;
};

// (W1b) The rests of the biases to a block of logits, `stride` numbers from row to row.
DIFNET_INLINE void add_rests(const TileBias<float>& of_a, const TileBias<float>& of_b, const BlockOf& block, float* S,
                             int64_t stride) {
  constexpr int W = kWidth<float>;
  for (int i = 0; i < kBlock; ++i)
    for (int j = 0; j < kBlock; j += W) {
      float* at = S + i * stride + j;
      store(at, load<Vec<float>>(at) + (load<Vec<float>>(of_b.rest + block.j + j) + of_a.rest[block.i + i]));
    }
}

// The largest S_ij - shift of a block, over both directions.
template <bool Biased>
DIFNET_INLINE Vec<float> largest_exponent(const Rows<float>& rows_a, const Rows<float>& rows_b, const BlockOf& block,
                                          const float* S, int64_t stride) {
  using V = Vec<float>;
  constexpr int W = kWidth<float>;
  V most = broadcast<V>(-__builtin_inff());
  for (int j = block.j; j < block.j + kBlock; j += W) {
    const V shift_j = load<V>(rows_b.shifts.shift + j), whole_j = Biased ? load<V>(rows_b.bias->whole + j) : V{};
    for (int i = block.i; i < block.i + kBlock; ++i) {
      const V logit = load<V>(S + (i - block.i) * stride + (j - block.j));
      V of_i = logit, of_j = logit;
      if constexpr (Biased) {
        of_i += whole_j;
        of_j += broadcast<V>(rows_a.bias->whole[i]);
      }
      most = larger(most, larger(of_i - broadcast<V>(rows_a.shifts.shift[i]), of_j - shift_j));
    }
  }
  return most;
}

// Weights of a block at [row of a pair][half of the columns]: rows i and i + 16, kWidth columns of each half.
struct Weights {
  Vec<float> of_i[2][2], of_j[2][2];  // exp(S_ij - shift_i), exp(S_ij - shift_j)
};

// Those of rows block.i + r and 16 further, and of columns block.j + j on and 16 further.
template <bool Biased>
DIFNET_INLINE Weights weights_of(const Rows<float>& rows_a, const Rows<float>& rows_b, const BlockOf& block, int r,
                                 int j, const float* S, int64_t stride) {
  using V = Vec<float>;
  Weights weights;
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const int column = block.j + h * kSide + j;
    const V limit_j = load<V>(rows_b.shifts.limit + column), exponent_j = load<V>(rows_b.shifts.exponent + column);
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      const int row = block.i + g * kSide + r;
      V round = broadcast<V>(Base2<float>::kRound);
      if constexpr (Biased) round += load<V>(rows_b.bias->integer + column) + broadcast<V>(rows_a.bias->integer[row]);
      const Exponential<float> e =
          exponential_parts<float>(load<V>(S + (g * kSide + r) * stride + h * kSide + j), round);
      weights.of_i[g][h] =
          weight<float>(e, broadcast<V>(rows_a.shifts.limit[row]), broadcast<V>(rows_a.shifts.exponent[row]));
      weights.of_j[g][h] = weight<float>(e, limit_j, exponent_j);
    }
  }
  return weights;
}

// The weights of a tile against another as operands: rows as A [nodes i][sum over j], columns as B [nodes j][sum over i].
struct WeightOperand {
  uint32_t* at;
  static constexpr int64_t kPart = kBlocks * kBlocks * kBlockPlaces;

  // Rows i and i + 16 of a block: of the rows, row r of both halves; of the columns, pair r.
  template <int Parts>
  DIFNET_MEMBER void store_rows(const BlockOf& block, int r, int j, const Vec<float> (&x)[2][2]) const {
    uint32_t* to = at + (block.i / kBlock * kBlocks + block.j / kBlock) * kBlockPlaces + r * kSide + j;
    for (int g = 0; g < 2; ++g) store_pairs<Parts>(to + g * kRegister, kPart, x[g][0], x[g][1]);
  }
  template <int Parts>
  DIFNET_MEMBER void store_columns(const BlockOf& block, int r, int j, const Vec<float> (&x)[2][2]) const {
    uint32_t* to = at + (block.j / kBlock * kBlocks + block.i / kBlock) * kBlockPlaces + r * kSide + j;
    for (int h = 0; h < 2; ++h) store_pairs<Parts>(to + h * kRegister, kPart, x[0][h], x[1][h]);
  }
  DIFNET_MEMBER Side side(int block) const { return {at + block * kBlocks * kBlockPlaces, kPart}; }
};

// What is written while the unit loads begins at lines of its own of each 4 KB, so many numbers apart: a load that meets a
// store to the same line of another page waits for it.
inline constexpr int64_t kApart = 192;
static_assert(kApart % kSide == 0 && WeightOperand::kPart % 1024 == 0 && kTile * kTile % 1024 == 0 &&
              5 * kApart <= 1024);  // five buffers of whole pages, and kApart between each two of them

// Blocks of a pair of tiles that have weights, a bit for each, i first: those that the sums over j of block `i` of rows
// leave out, and those that the sums over i of block `j` of columns do.
struct WeightBlocks {
  uint32_t there = 0;

  DIFNET_MEMBER void set(const BlockOf& block) { there |= 1u << (block.i / kBlock * kBlocks + block.j / kBlock); }
  DIFNET_MEMBER bool has(int i, int j) const { return (there >> (i * kBlocks + j) & 1) != 0; }
  DIFNET_MEMBER uint32_t without(bool rows, int block) const {
    uint32_t without = 0;
    for (int k = 0; k < kBlocks; ++k)
      if (!(rows ? has(block, k) : has(k, block))) without |= 1u << k;
    return without;
  }
  // rows or columns that sums are made of, a bit for every kRowGroup (WalkForwardScratch::written)
  DIFNET_MEMBER uint64_t written(bool rows) const {
    uint64_t written = 0;
    for (int block = 0; block < kBlocks; ++block)
      if (without(rows, block) != (1u << kBlocks) - 1)
        written |= ((uint64_t(1) << kBlock / kRowGroup) - 1) << block * kBlock / kRowGroup;
    return written;
  }
};

// Sums over the nodes of a tile for the blocks that have weights: into rows [node][channel], where the weights are A and
// the field B, or into columns [channel][node], where the field is A.
DIFNET_INLINE void sum_rows(const WeightOperand& weights, const WeightBlocks& there, const Packed& field,
                            int64_t channel_blocks, const Order& order, float* to) {
  for (int64_t c = 0; c < channel_blocks; ++c)
    for (int i = 0; i < kBlocks; ++i) {
      const uint32_t without = there.without(true, i);
      if (without == (1u << kBlocks) - 1) continue;
      BlockProducts products;
      products.add({weights.side(i), side_b(field, c), &order, kBlocks, without,
                    to + i * kBlock * channel_blocks * kBlock + c * kBlock, channel_blocks * kBlock});
      products.run();
    }
}
DIFNET_INLINE void sum_columns(const WeightOperand& weights, const WeightBlocks& there, const Packed& field,
                               int64_t channel_blocks, const Order& order, float* to) {
  for (int64_t c = 0; c < channel_blocks; ++c)
    for (int j = 0; j < kBlocks; ++j) {
      const uint32_t without = there.without(false, j);
      if (without == (1u << kBlocks) - 1) continue;
      BlockProducts products;
      products.add(
          {side_a(field, c), weights.side(j), &order, kBlocks, without, to + c * kBlock * kTile + j * kBlock, kTile});
      products.run();
    }
}

// Rows [node][channel] of a tile that were written, to sums in channel panels.
DIFNET_INLINE void add_rows_to_panels(const float* rows, uint64_t written, int64_t stride, int64_t channels,
                                      float* sums) {
  constexpr int W = kWidth<float>;
  for (int n = 0; n < kTile; ++n)
    if ((written >> n / kRowGroup & 1) != 0)
      for (int64_t c = 0; c < channels; c += W) {
        float* to = sums + in_channel_panels<float>(n, c);
        store(to, load<Vec<float>>(to) + load<Vec<float>>(rows + n * stride + c));
      }
}
// Columns [channel][node] of a tile that were written, to sums that lie alike.
DIFNET_INLINE void add_columns(const float* columns, uint64_t written, int64_t channels, float* sums) {
  constexpr int W = kWidth<float>;
  for (int64_t c = 0; c < channels; ++c)
    for (int n = 0; n < kTile; n += W)
      if ((written >> n / kRowGroup & 1) != 0)
        store(sums + c * kTile + n, load<Vec<float>>(sums + c * kTile + n) + load<Vec<float>>(columns + c * kTile + n));
}
// Moves sums that lie [channel][node] to those of the same tile in channel panels.
DIFNET_INLINE void turn_columns(float* columns, int64_t channels, float* sums) {
  for (int64_t c = 0; c < channels; ++c)
    for (int n = 0; n < kTile; ++n) {
      sums[in_channel_panels<float>(n, c)] += columns[c * kTile + n];
      columns[c * kTile + n] = 0;
    }
}

}  // namespace difnet::cpu::DIFNET_ISA
