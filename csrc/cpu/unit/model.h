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

// The registers of a thread.
struct ModelRegister {
  uint32_t bits[kSide][kSide];
};
static thread_local ModelRegister model_registers[8];

// What all threads have done so far.
enum { kModelLoads, kModelProducts, kModelReads };
static int64_t model_counts[3];

class Unit {
 public:
  static void begin(unsigned char*) {}
  static void end(const unsigned char*) {}

  template <int C>
  static void clear() {
    __builtin_memset(&model_registers[C], 0, sizeof(ModelRegister));
  }
  template <int A>
  static void load_a(const uint32_t* from) {
    load(A, from);
  }
  template <int B>
  static void load_b(const uint32_t* from) {
    load(B, from);
  }
  template <int C, int A, int B>
  static void multiply() {
    multiply(model_registers[C], model_registers[A], model_registers[B]);
  }
  template <int C>
  static void write_rows(const float* from, int64_t stride) {
    for (int m = 0; m < kSide; ++m) __builtin_memcpy(model_registers[C].bits[m], from + m * stride, kRowBytes);
  }
  template <int C>
  static void read_rows(float* to, int64_t stride) {
    count(kModelReads);
    for (int m = 0; m < kSide; ++m) __builtin_memcpy(to + m * stride, model_registers[C].bits[m], kRowBytes);
  }

  // Loads, products and reads.
  static void counts(int64_t* to) {
    for (int what = 0; what < 3; ++what) to[what] = __atomic_load_n(&model_counts[what], __ATOMIC_RELAXED);
  }

 private:
  static constexpr int kRowBytes = kSide * int(sizeof(float));

  static void count(int what) { __atomic_fetch_add(&model_counts[what], 1, __ATOMIC_RELAXED); }

  static void load(int place, const uint32_t* from) {
    count(kModelLoads);
    __builtin_memcpy(&model_registers[place], from, sizeof(ModelRegister));
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

  // The smallest and the largest exponent of the numbers of an operand that are not zero.
  struct Range {
    int least = 255, most = 0;

    DIFNET_MEMBER void add(uint32_t bits) {
      const int exponent = int(bits >> 23 & 255);
      const bool zero = (bits & 0x7fffffffu) == 0;
      least = zero || exponent > least ? least : exponent;
      most = exponent < most ? most : exponent;
    }
  };
  // Products are multiples of 2^-14 times the smallest one, and so are their sums, of which there are 32.
  static DIFNET_MEMBER bool fit(const ModelRegister& sums, const ModelRegister& a, const ModelRegister& b) {
    Range of_sums, of_a, of_b;
    for (int m = 0; m < kSide; ++m)
      for (int n = 0; n < kSide; ++n) {
        of_sums.add(sums.bits[m][n]);
        of_a.add(a.bits[m][n] << 16);
        of_a.add(a.bits[m][n] & 0xffff0000u);
        of_b.add(b.bits[m][n] << 16);
        of_b.add(b.bits[m][n] & 0xffff0000u);
      }
    return of_a.least + of_b.least >= 2 * 127 - 108 && of_a.most + of_b.most <= 2 * 127 + 110 &&
           of_sums.least >= 127 - 100 && of_sums.most <= 127 + 110 && of_a.least > 0 && of_b.least > 0;
  }

  // With products and sums of `Number`s, and each sum rounded to fp32.
  template <typename Number, typename Round>
  static DIFNET_MEMBER void multiply_in(ModelRegister& sums, const ModelRegister& a, const ModelRegister& b,
                                        Round round) {
    Number firsts[kSide][kSide], seconds[kSide][kSide];
    for (int k = 0; k < kSide; ++k)
      for (int n = 0; n < kSide; ++n) {
        firsts[k][n] = Number(operand(b.bits[k][n] << 16));
        seconds[k][n] = Number(operand(b.bits[k][n] & 0xffff0000u));
      }
    for (int m = 0; m < kSide; ++m) {
      float first[kSide] = {}, second[kSide] = {};
      for (int k = 0; k < kSide; ++k) {
        const Number x = Number(operand(a.bits[m][k] << 16)), y = Number(operand(a.bits[m][k] & 0xffff0000u));
        for (int n = 0; n < kSide; ++n) {
          first[n] = round(x * firsts[k][n] + Number(first[n]));
          second[n] = round(y * seconds[k][n] + Number(second[n]));
        }
      }
      for (int n = 0; n < kSide; ++n) {
        const Number both = Number(round(Number(first[n]) + Number(second[n])));
        sums.bits[m][n] = __builtin_bit_cast(uint32_t, round(Number(operand(sums.bits[m][n])) + both));
      }
    }
  }

  static __attribute__((noinline)) void multiply(ModelRegister& sums, const ModelRegister& a, const ModelRegister& b) {
    count(kModelProducts);
    if (fit(sums, a, b))
      multiply_in<float>(sums, a, b, [](float x) { return x; });
    else
      multiply_in<double>(sums, a, b, [](double x) { return rounded(x); });
  }
};

}  // namespace difnet::cpu::DIFNET_ISA
