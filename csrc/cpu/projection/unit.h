// z = W f (Ψ1) on a matrix unit, and what its gradients share with it: how many products of parts each product takes, which
// numbers the unit may multiply, and tiles as operands.
//
// A tile has two orders (channels_innermost), and either is an operand as it lies: [pixel][channel] is a form A, and
// [channel][pixel] a form B. So the unit makes z in one order or the other, by the same sums of the same products.
#pragma once

#include "cpu/projection/tile.h"
#include "cpu/unit/blocks.h"

namespace difnet::cpu::DIFNET_ISA {

// The products of Ψ as sums of products of parts; each once more with its operands in each other's place.
struct ProjectionScheme {
  Order features_weight, weight_features;  // (Ψ1) features by W
  Order grad_weight, weight_grad;          // (Ψ3) the gradient of z by W
  Order features_grad, grad_features;      // (Ψ4) features by the gradient of z
};
// 24 digits, less those that a feature does not have, or that storing a gradient cuts off.
constexpr ProjectionScheme projection_scheme(Order by_features, Order into_features) {
  return {by_features, turned(by_features), into_features, turned(into_features), by_features, turned(by_features)};
}
inline constexpr ProjectionScheme kOfFp32Features = projection_scheme(kSix, kSix);
inline constexpr ProjectionScheme kOfBf16Features = projection_scheme(kOneByThree, kThree);
inline constexpr ProjectionScheme kOfFp16Features = projection_scheme(kTwoByThree, kThree);

// Of some numbers, the bits of the largest one and of the smallest one that is not zero, without their signs. NaN and
// infinity are the largest.
struct Range {
  uint32_t most, least;
};

// Lanes of ranges. A zero is the largest of the smallest.
struct Ranges {
  using U = VectorOf<float, kRegisterBytes>::Bits;
  U most = {}, least_less_one = ~U{};

  DIFNET_MEMBER void add(Vec<float> x) {
    const U bits = U(x) & 0x7fffffffu, less_one = bits - 1;
    most = bits > most ? bits : most;
    least_less_one = less_one < least_less_one ? less_one : least_less_one;
  }
  DIFNET_MEMBER Range of(int lane) const { return {most[lane], least_less_one[lane] + 1}; }
  DIFNET_MEMBER Range all() const {
    Range range = of(0);
    for (int lane = 1; lane < kWidth<float>; ++lane) range = joined(range, of(lane));
    return range;
  }
  // a smallest one of 0 is that of no number but zero
  static DIFNET_MEMBER Range joined(const Range& a, const Range& b) {
    return {a.most > b.most ? a.most : b.most, a.least - 1 < b.least - 1 ? a.least : b.least};
  }
};

// Whether the unit may multiply numbers of these ranges: their parts are normal numbers, and what it takes for zero
// because it is below 2^-126 is below the rounding of each product.
DIFNET_INLINE bool in_range_of_unit(const Range& a, const Range& b) {
  constexpr int kBias = 127, kLeast = kBias - 100, kMost = kBias + 120;
  const int most_a = int(a.most >> 23), most_b = int(b.most >> 23);
  const int least_a = int((a.least - 1) >> 23), least_b = int((b.least - 1) >> 23);  // 511 where all are zero
  return most_a <= kMost && most_b <= kMost && most_a + most_b <= 2 * kBias + 100 && least_a >= kLeast &&
         least_b >= kLeast && least_a + least_b >= 2 * kBias - 100;
}

// One form of an operand, [block of rows][block of numbers] for each part.
struct TileOperand {
  const uint32_t* at;
  int64_t depth, part;

  static constexpr int64_t kPart = kBlocks * kBlocks * kBlockPlaces;
  DIFNET_MEMBER Side side(int64_t rows) const { return {at + rows * depth * kBlockPlaces, part}; }
};

DIFNET_INLINE TileOperand operand_a(const Packed& x) { return {x.a, x.depth, x.part}; }
DIFNET_INLINE TileOperand operand_b(const Packed& x) { return {x.b, x.depth, x.part}; }

// A tile [row][kTile numbers] as form A, or [number][kTile rows] as form B.
template <int Parts>
DIFNET_INLINE TileOperand pack_tile(bool form_a, const float* tile, uint32_t* to) {
  constexpr int W = kWidth<float>;
  using V = Vec<float>;
  for (int64_t block = 0; block < kBlocks * kBlocks; ++block) {
    const int64_t row = block / kBlocks * kBlock, number = block % kBlocks * kBlock;
    for (int half = 0; half < 2; ++half)
      for (int x = 0; x < kSide; ++x)  // a row, or a pair of numbers
        for (int lane = 0; lane < kSide; lane += W) {
          const float* from = form_a ? tile + (row + half * kSide + x) * kTile + number + lane
                                     : tile + (number + x) * kTile + row + half * kSide + lane;
          store_pairs<Parts>(to + block * kBlockPlaces + half * kRegister + x * kSide + lane, TileOperand::kPart,
                             load<V>(from), load<V>(from + kSide * (form_a ? 1 : kTile)));
        }
  }
  return {to, kBlocks, TileOperand::kPart};
}

// Zeros in what a tile has room for but does not hold: numbers that the unit sums over.
DIFNET_INLINE void clear_rest(bool innermost, int64_t pixels, int64_t channels, float* tile) {
  const int64_t rows = innermost ? pixels : channels, columns = innermost ? channels : pixels;
  for (int64_t row = 0; row < kTile; ++row)
    for (int64_t column = row < rows ? columns : 0; column < kTile; ++column) tile[row * kTile + column] = 0;
}

// One of the products to `to`, [row][column], `stride` numbers from row to row.
DIFNET_INLINE void multiply_on_unit(const TileOperand& rows, const TileOperand& columns, int64_t row_blocks,
                                    int64_t column_blocks, const Order& order, float* to, int64_t stride) {
  for (int64_t row = 0; row < row_blocks; ++row)
    for (int64_t column = 0; column < column_blocks; ++column) {
      BlockProducts products;
      products.add({rows.side(row), columns.side(column), &order, rows.depth, 0,
                    to + row * kBlock * stride + column * kBlock, stride});
      products.run();
    }
}
DIFNET_INLINE void add_numbers(const float* fresh, int64_t count, float* sums) {
  for (int64_t x = 0; x < count; x += kWidth<float>)
    store(sums + x, load<Vec<float>>(sums + x) + load<Vec<float>>(fresh + x));
}

// What the unit has of a block of W, behind ProjectionForward::unit and ProjectionBackward::unit.
struct WeightOfBlock {
  uint32_t* range;
  Packed W;       // [embed channel][sum over feature channels]
  Packed W_back;  // [feature channel][sum over embed channels], backward only

  static constexpr int64_t kRange = 16;  // places, of which two are used
  static DIFNET_MEMBER int64_t places(const ProjectionScheme& scheme, const ProjectionSizes& size, bool backward) {
    const int64_t D = blocks(size.embed);
    return kRange + packed_places(parts_of_b(scheme.features_weight), D, kBlocks) +
           (backward ? packed_places(parts_of_b(scheme.grad_weight), kBlocks, D) : 0);
  }
  DIFNET_MEMBER WeightOfBlock(const ProjectionScheme& scheme, const ProjectionSizes& size, bool backward,
                              float* of_blocks, int64_t block) {
    const int64_t D = blocks(size.embed);
    uint32_t* at = reinterpret_cast<uint32_t*>(of_blocks) + block * places(scheme, size, backward);
    range = at;
    at += kRange;
    W = packed_at(at, parts_of_b(scheme.features_weight), D, kBlocks);
    W_back = {};
    if (backward) W_back = packed_at(at, parts_of_b(scheme.grad_weight), kBlocks, D);
  }
  DIFNET_MEMBER Range numbers() const { return {range[0], range[1]}; }
  DIFNET_MEMBER void set_numbers(const Range& of) const {
    range[0] = of.most;
    range[1] = of.least;
  }

  // From its panels.
  template <int Parts>
  DIFNET_MEMBER void fill(const ProjectionSizes& size, const float* panels, int64_t block) const {
    constexpr int P = kNR<float>;
    const int64_t depth = block_channels(size, block), stored = size.panels * P;
    Ranges ranges;
    const auto read = [&](int64_t c, int64_t d) {
      if (c >= depth || d >= stored) return Vec<float>{};
      return load<Vec<float>>(panels + (d / P * size.channels + block * kTile + c) * P + d % P);
    };
    for (int64_t d = 0; d < stored; d += kWidth<float>)
      for (int64_t c = 0; c < depth; ++c) ranges.add(read(c, d));
    set_numbers(ranges.all());
    pack<Parts>(W, blocks(size.embed), read);
  }
};

// z of a tile, a block of feature channels after the other. A pixel whose features the unit may not multiply has them
// multiplied by the vectors: its neighbours do not notice.
template <const ProjectionScheme& scheme, bool Backward = false>
class UnitProjection {
 public:
  static DIFNET_MEMBER int64_t places(const ProjectionSizes& size) {
    return parts_of_a(scheme.features_weight) * TileOperand::kPart + 2 * kTile * blocks(size.embed) * kBlock;
  }
  DIFNET_MEMBER UnitProjection(const ProjectionSizes& size, const Volume& volume, const float* weight_panels,
                               float* of_blocks, float* of_worker)
      : size_(size),
        weight_panels_(weight_panels),
        innermost_(channels_innermost(volume)),
        of_blocks_(of_blocks),
        features_(reinterpret_cast<uint32_t*>(of_worker)),
        sums_(of_worker + parts_of_a(scheme.features_weight) * TileOperand::kPart),
        fresh_(sums_ + kTile * blocks(size.embed) * kBlock) {
    Unit::begin(callers_unit_);
  }
  ~UnitProjection() { Unit::end(callers_unit_); }
  UnitProjection(const UnitProjection&) = delete;
  UnitProjection& operator=(const UnitProjection&) = delete;

  void project(int64_t block, float* features, int64_t count, float*, Prefetch ahead) const {
    ahead.ask(kTile);
    const WeightOfBlock weight(scheme, size_, Backward, of_blocks_, block);
    clear_rest(innermost_, count, block_channels(size_, block), features);
    const int64_t D = blocks(size_.embed), pixels = blocks(count);
    const TileOperand f = pack_tile<parts_of_a(scheme.features_weight)>(innermost_, features, features_);
    float* to = block == 0 ? sums_ : fresh_;
    if (innermost_)
      multiply_on_unit(f, operand_b(weight.W), pixels, D, scheme.features_weight, to, D * kBlock);
    else
      multiply_on_unit(operand_a(weight.W), f, D, pixels, scheme.weight_features, to, kTile);
    replace(block, features, count, weight.numbers(), to);
    if (block > 0) add_numbers(fresh_, kTile * D * kBlock, sums_);
  }

  // To z, in panels.
  void finish(int64_t count, float* z) const {
    constexpr int P = kNR<float>;
    for (int64_t panel = 0; panel < size_.panels; ++panel)
      for (int64_t n = 0; n < count; ++n)
        for (int64_t lane = 0; lane < P; ++lane) z[(panel * kTile + n) * P + lane] = *at(sums_, n, panel * P + lane);
  }

 private:
  DIFNET_MEMBER float* at(float* sums, int64_t pixel, int64_t d) const {
    return sums + (innermost_ ? pixel * blocks(size_.embed) * kBlock + d : d * kTile + pixel);
  }

  // By vectors, pixels whose numbers are out of range.
  DIFNET_MEMBER void replace(int64_t block, const float* features, int64_t count, const Range& weight,
                             float* sums) const {
    constexpr int W = kWidth<float>;
    for (int64_t n = 0; n < count; n += W) {
      Range of_pixel[W];
      Ranges ranges;
      if (!innermost_) {
        for (int64_t c = 0; c < kTile; ++c) ranges.add(load<Vec<float>>(features + c * kTile + n));
        for (int lane = 0; lane < W; ++lane) of_pixel[lane] = ranges.of(lane);
      }
      for (int lane = 0; lane < W && n + lane < count; ++lane) {
        if (innermost_) {
          ranges = {};
          for (int64_t c = 0; c < kTile; c += W) ranges.add(load<Vec<float>>(features + (n + lane) * kTile + c));
          of_pixel[lane] = ranges.all();
        }
        if (!in_range_of_unit(of_pixel[lane], weight)) by_vectors(block, features, n + lane, sums);
      }
    }
  }
  __attribute__((noinline)) void by_vectors(int64_t block, const float* features, int64_t pixel, float* sums) const {
    constexpr int P = kNR<float>;
    alignas(64) float z[kMR * P];
    const int64_t first = pixel - pixel % kMR;
    for (int64_t panel = 0; panel < size_.panels; ++panel) {
      const float* weight = weight_panels_ + (panel * size_.channels + block * kTile) * P;
      if (innermost_)
        multiply<kTile, 1, P, P>(features + first * kTile, weight, block_channels(size_, block), false, z);
      else
        multiply<1, kTile, P, P>(features + first, weight, block_channels(size_, block), false, z);
      for (int64_t lane = 0; lane < P; ++lane) *at(sums, pixel, panel * P + lane) = z[(pixel - first) * P + lane];
    }
  }

  const ProjectionSizes& size_;
  const float* const weight_panels_;
  const bool innermost_;
  float* const of_blocks_;
  uint32_t* const features_;
  float *const sums_, *const fresh_;  // [pixel][embed channel] where channels are innermost, else turned
  alignas(64) mutable unsigned char callers_unit_[64];
};

}  // namespace difnet::cpu::DIFNET_ISA
