// Operands of a matrix unit: numbers in bf16 parts, in blocks.
//
// A number is the sum of up to three parts, each what is left of it by then, rounded to the 8 digits of bf16: 2^-9, 2^-18
// and nothing remain. So a product of two numbers is that of their parts, without the pairs of parts that are too small
// to matter (Order). Parts that were cut off would leave 2^-7 of either sign alone, and three products 16 times more.
//
// A block is kBlock rows of kBlock numbers over which a product sums, in registers of 16 rows of 16 pairs. A pair holds
// numbers c and c + 16 of the 32, so that two vectors become pairs by a shift and a mask, without moving between lanes.
// Form A has the rows of an operand as rows of registers, form B as their columns:
//
//   A [half of the rows][row][pair]       B [half of the rows][pair][row]: each register is that of A, transposed
#pragma once

#include "cpu/layouts.h"
#include "cpu/unit/unit.h"

namespace difnet::cpu::DIFNET_ISA {

inline constexpr int kBlock = 2 * kSide, kRegister = kSide * kSide, kBlockPlaces = 2 * kRegister;
inline constexpr int kBlocks = kTile / kBlock;  // of the nodes of a tile

constexpr int64_t blocks(int64_t numbers) { return (numbers + kBlock - 1) / kBlock; }

// Which parts are multiplied, the smallest products first.
struct Order {
  int count;
  struct {
    int a, b;
  } parts[6];
};
inline constexpr Order kOne = {1, {{0, 0}}};
inline constexpr Order kThree = {3, {{1, 0}, {0, 1}, {0, 0}}};
inline constexpr Order kFour = {4, {{1, 1}, {1, 0}, {0, 1}, {0, 0}}};
inline constexpr Order kSix = {6, {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}}};
inline constexpr Order kOneByThree = {3, {{0, 2}, {0, 1}, {0, 0}}};
inline constexpr Order kTwoByThree = {5, {{1, 1}, {0, 2}, {1, 0}, {0, 1}, {0, 0}}};

// The same with the operands in each other's place: the same bits.
constexpr Order turned(Order order) {
  for (auto& parts : order.parts) parts = {parts.b, parts.a};
  return order;
}

constexpr int parts_of_a(const Order& order) {
  int most = 0;
  for (int p = 0; p < order.count; ++p) most = order.parts[p].a > most ? order.parts[p].a : most;
  return most + 1;
}
constexpr int parts_of_b(const Order& order) {
  int most = 0;
  for (int p = 0; p < order.count; ++p) most = order.parts[p].b > most ? order.parts[p].b : most;
  return most + 1;
}

// The pairs (low, high) of the numbers of two vectors, a vector for each part, `stride` places apart.
template <int Parts>
DIFNET_INLINE void store_pairs(uint32_t* to, int64_t stride, Vec<float> low, Vec<float> high) {
  using U = VectorOf<float, kRegisterBytes>::Bits;
  using Unaligned __attribute__((vector_size(kRegisterBytes), aligned(4), may_alias)) = uint32_t;
  constexpr uint32_t first_half = 0xffff0000u, half_of_the_last_digit = 0x8000u;
#pragma GCC unroll 3
  for (int part = 0; part < Parts; ++part, to += stride) {
    const U l = U(low) + half_of_the_last_digit, h = U(high) + half_of_the_last_digit;
    low -= Vec<float>(l & first_half);
    high -= Vec<float>(h & first_half);
    *reinterpret_cast<Unaligned*>(to) = (l >> 16) | (h & first_half);
  }
}

// An operand in memory: [part][block of rows][block of numbers], both forms.
struct Packed {
  uint32_t *a, *b;
  int64_t depth, part;  // blocks of numbers; places of a part of a form

  const uint32_t* of_a(int64_t rows) const { return a + rows * depth * kBlockPlaces; }
  const uint32_t* of_b(int64_t rows) const { return b + rows * depth * kBlockPlaces; }
};

constexpr int64_t packed_places(int parts, int64_t row_blocks, int64_t depth) {
  return 2 * parts * row_blocks * depth * kBlockPlaces;
}

// `at` is moved on behind the operand.
DIFNET_INLINE Packed packed_at(uint32_t*& at, int parts, int64_t row_blocks, int64_t depth) {
  const int64_t part = row_blocks * depth * kBlockPlaces;
  const Packed packed = {at, at + parts * part, depth, part};
  at += 2 * parts * part;
  return packed;
}

// A NaN whose digits do not overflow when they are rounded.
DIFNET_INLINE Vec<float> plain_nan(Vec<float> x) { return x != x ? broadcast<Vec<float>>(__builtin_nanf("")) : x; }

// Fills an operand of `row_blocks` blocks of rows. read(number, row) is a vector of the same number of kWidth rows.
template <int Parts, typename Read>
DIFNET_INLINE void pack(const Packed& to, int64_t row_blocks, Read read) {
  constexpr int W = kWidth<float>;
  for (int64_t block = 0; block < row_blocks * to.depth; ++block) {
    const int64_t row = block / to.depth * kBlock, number = block % to.depth * kBlock;
    for (int half = 0; half < 2; ++half) {
      uint32_t *a = to.a + block * kBlockPlaces + half * kRegister, *b = to.b + block * kBlockPlaces + half * kRegister;
      for (int pair = 0; pair < kSide; ++pair)
        for (int n = 0; n < kSide; n += W)
          store_pairs<Parts>(b + pair * kSide + n, to.part, plain_nan(read(number + pair, row + half * kSide + n)),
                             plain_nan(read(number + pair + kSide, row + half * kSide + n)));
      for (int part = 0; part < Parts; ++part, a += to.part, b += to.part)
        for (int n = 0; n < kSide; ++n)
          for (int pair = 0; pair < kSide; ++pair) a[n * kSide + pair] = b[pair * kSide + n];
    }
  }
}
template <typename Read>
DIFNET_INLINE void pack(int parts, const Packed& to, int64_t row_blocks, Read read) {
  if (parts == 1) return pack<1>(to, row_blocks, read);
  if (parts == 2) return pack<2>(to, row_blocks, read);
  pack<3>(to, row_blocks, read);
}

}  // namespace difnet::cpu::DIFNET_ISA
