// The matrix unit in plain C++, exact to the bit: what runs where there is none, and what the unit is tested against.
//
// `tdpbf16ps` makes, for each of its sums, one sum of the first numbers of the 16 pairs and one of the second ones, each
// by fused multiply-adds from +0, then C + (first + second). All is rounded to the nearest, ties to even, whatever the
// thread's mode, and denormal numbers are zero, as operands and as results.
//
// A product of two bf16 numbers has 16 digits, and added in fp64 to a fp32 number it is either exact or too small to
// change how the sum rounds to fp32. So fp64 and one rounding are a fused multiply-add, on any processor. Where no product
// and no sum can leave the range of fp32, the product is exact in fp32 already, which is faster.
#pragma once

#include "cpu/simd.h"

namespace difnet::cpu::DIFNET_ISA {

// Of some numbers, the bits of the largest one and of the smallest one that is not zero, less one, without their signs.
struct ModelRange {
  uint32_t most, least;
};
struct ModelRanges {
  using U = VectorOf<float, kRegisterBytes>::Bits;
  U most = {}, least = ~U{};

  DIFNET_MEMBER void add(Vec<float> x) {
    const U bits = U(x) & 0x7fffffffu, less_one = bits - 1;
    most = bits > most ? bits : most;
    least = less_one < least ? less_one : least;
  }
  DIFNET_MEMBER ModelRange all() const {
    ModelRange range = {0, ~uint32_t(0)};
    for (int lane = 0; lane < kWidth<float>; ++lane) {
      range.most = most[lane] > range.most ? most[lane] : range.most;
      range.least = least[lane] < range.least ? least[lane] : range.least;
    }
    return range;
  }
};

// One for all sources of the instruction set. The registers of a thread: sums, and operands as they are multiplied, the first and the second numbers of the pairs.
struct ModelOperand {
  float first[kSide][kSide], second[kSide][kSide];
  ModelRange range;
};
inline constinit thread_local float model_sums[8][kSide][kSide] = {};
inline constinit thread_local ModelOperand model_operands[8] = {};

// What all threads have done so far.
enum { kModelLoads, kModelProducts, kModelReads };
inline int64_t model_counts[3];

class Unit {
 public:
  static void begin(unsigned char*) {}
  static void end(const unsigned char*) {}

  template <int C>
  static void clear() {
    __builtin_memset(model_sums[C], 0, sizeof(model_sums[C]));
  }
  template <int A>
  static void load_a(const uint32_t* from) {
    load_operand(model_operands[A], from);
  }
  template <int B>
  static void load_b(const uint32_t* from) {
    load_operand(model_operands[B], from);
  }
  template <int C, int A, int B>
  static void multiply() {
    multiply(model_sums[C], model_operands[A], model_operands[B]);
  }
  template <int C>
  static void write_rows(const float* from, int64_t stride) {
    for (int m = 0; m < kSide; ++m) __builtin_memcpy(model_sums[C][m], from + m * stride, kRowBytes);
  }
  template <int C>
  static void read_rows(float* to, int64_t stride) {
    count(kModelReads);
    for (int m = 0; m < kSide; ++m) __builtin_memcpy(to + m * stride, model_sums[C][m], kRowBytes);
  }

  // Loads, products and reads.
  static void counts(int64_t* to) {
    for (int what = 0; what < 3; ++what) to[what] = __atomic_load_n(&model_counts[what], __ATOMIC_RELAXED);
  }

 private:
  static constexpr int kRowBytes = kSide * int(sizeof(float));

  static void count(int what) { __atomic_fetch_add(&model_counts[what], 1, __ATOMIC_RELAXED); }

  static __attribute__((noinline)) void load_operand(ModelOperand& to, const uint32_t* from) {
    count(kModelLoads);
    using V = Vec<float>;
    using U = ModelRanges::U;
    ModelRanges ranges;
    for (int x = 0; x < kSide * kSide; x += kWidth<float>) {
      const U pairs = U(load<V>(reinterpret_cast<const float*>(from) + x));
      const U first = pairs << 16, second = pairs & 0xffff0000u;
      ranges.add(V(first));
      ranges.add(V(second));
      store(&to.first[0][0] + x, operands(first));
      store(&to.second[0][0] + x, operands(second));
    }
    to.range = ranges.all();
  }
  static DIFNET_MEMBER Vec<float> operands(ModelRanges::U bits) {
    return Vec<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
  }

  // A number as an operand: a denormal one is zero.
  static DIFNET_MEMBER float operand(uint32_t bits) {
    bits = (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits;
    return __builtin_bit_cast(float, bits);
  }
  // Rounded to fp32, as if its exponents had no end below, and zero if it is then less than its smallest normal number.
  static DIFNET_MEMBER float rounded(double x) {
    const double least = 0x1p-126 - 0x1p-151;  // the tie below the smallest normal number rounds up to it
    return float(x < least && x > -least ? 0 * x : x);
  }

  // Products are multiples of 2^-14 times the smallest one, and so are their sums, of which there are 32.
  static DIFNET_MEMBER bool fit(const float (&sums)[kSide][kSide], const ModelRange& a, const ModelRange& b) {
    ModelRanges of_sums;
    for (int m = 0; m < kSide; ++m)
      for (int n = 0; n < kSide; n += kWidth<float>) of_sums.add(load<Vec<float>>(&sums[m][n]));
    const ModelRange sum = of_sums.all();
    return exponent(a.least) + exponent(b.least) >= 2 * 127 - 108 &&
           exponent(a.most) + exponent(b.most) <= 2 * 127 + 110 && exponent(sum.least) >= 127 - 100 &&
           exponent(sum.most) <= 127 + 110 && exponent(a.least) > 0 && exponent(b.least) > 0;
  }
  static DIFNET_MEMBER int exponent(uint32_t bits) { return int(bits >> 23); }

  // Where every product and sum is exact, or rounds once, in fp32.
  static DIFNET_MEMBER void multiply_in_fp32(float (&sums)[kSide][kSide], const ModelOperand& a,
                                             const ModelOperand& b) {
    using V = Vec<float>;
    constexpr int W = kWidth<float>, kRows = 4;
    for (int m = 0; m < kSide; m += kRows)
      for (int n = 0; n < kSide; n += W) {
        V first[kRows] = {}, second[kRows] = {};
        for (int k = 0; k < kSide; ++k)
#pragma GCC unroll 4
          for (int row = 0; row < kRows; ++row) {
            first[row] += broadcast<V>(a.first[m + row][k]) * load<V>(&b.first[k][n]);
            second[row] += broadcast<V>(a.second[m + row][k]) * load<V>(&b.second[k][n]);
          }
        for (int row = 0; row < kRows; ++row) {
          float* to = &sums[m + row][n];
          store(to, load<V>(to) + (first[row] + second[row]));
        }
      }
  }
  // Whatever the numbers are.
  static DIFNET_MEMBER void multiply_in_fp64(float (&sums)[kSide][kSide], const ModelOperand& a,
                                             const ModelOperand& b) {
    for (int m = 0; m < kSide; ++m) {
      float first[kSide] = {}, second[kSide] = {};
      for (int k = 0; k < kSide; ++k) {
        const double x = a.first[m][k], y = a.second[m][k];
        for (int n = 0; n < kSide; ++n) {
          first[n] = rounded(x * double(b.first[k][n]) + double(first[n]));
          second[n] = rounded(y * double(b.second[k][n]) + double(second[n]));
        }
      }
      for (int n = 0; n < kSide; ++n) {
        const float sum = operand(__builtin_bit_cast(uint32_t, sums[m][n]));
        sums[m][n] = rounded(double(sum) + double(rounded(double(first[n]) + double(second[n]))));
      }
    }
  }

  static __attribute__((noinline)) void multiply(float (&sums)[kSide][kSide], const ModelOperand& a,
                                                 const ModelOperand& b) {
    count(kModelProducts);
    if (fit(sums, a.range, b.range))
      multiply_in_fp32(sums, a, b);
    else
      multiply_in_fp64(sums, a, b);
  }
};

}  // namespace difnet::cpu::DIFNET_ISA
