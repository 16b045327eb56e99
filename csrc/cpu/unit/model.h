// The matrix unit in plain C++, exact to the bit: what runs where there is none, and what the unit is tested against.
//
// `tdpbf16ps` makes, for each of its sums, one sum of the first numbers of the 16 pairs and one of the second ones, each
// by fused multiply-adds from +0, then C + (first + second). All is rounded to the nearest, ties to even, whatever the
// thread's mode, and denormal numbers are zero, as operands and as results.
//
// A product of two bf16 numbers has 16 digits, and added in fp64 to a fp32 number it is either exact or too small to
// change how the sum rounds to fp32. So fp64 and one rounding are a fused multiply-add, on any processor.
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
  static constexpr bool kModel = true;

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
  static DIFNET_MEMBER double operand(uint32_t bits) {
    bits = (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits;
    return double(__builtin_bit_cast(float, bits));
  }
  // Rounded to fp32, as if its exponents had no end below, and zero if it is then less than its smallest normal number.
  static DIFNET_MEMBER float rounded(double x) {
    const double least = 0x1p-126 - 0x1p-151;  // the tie below the smallest normal number rounds up to it
    return float(x < least && x > -least ? 0 * x : x);
  }

  static __attribute__((noinline)) void multiply(ModelRegister& sums, const ModelRegister& a, const ModelRegister& b) {
    count(kModelProducts);
    double firsts[kSide][kSide], seconds[kSide][kSide];
    for (int k = 0; k < kSide; ++k)
      for (int n = 0; n < kSide; ++n) {
        firsts[k][n] = operand(b.bits[k][n] << 16);
        seconds[k][n] = operand(b.bits[k][n] & 0xffff0000u);
      }
    for (int m = 0; m < kSide; ++m) {
      float first[kSide] = {}, second[kSide] = {};
      for (int k = 0; k < kSide; ++k) {
        const double x = operand(a.bits[m][k] << 16), y = operand(a.bits[m][k] & 0xffff0000u);
        for (int n = 0; n < kSide; ++n) {
          first[n] = rounded(x * firsts[k][n] + double(first[n]));
          second[n] = rounded(y * seconds[k][n] + double(second[n]));
        }
      }
      for (int n = 0; n < kSide; ++n) {
        const double both = double(rounded(double(first[n]) + double(second[n])));
        sums.bits[m][n] = __builtin_bit_cast(uint32_t, rounded(operand(sums.bits[m][n]) + both));
      }
    }
  }
};

}  // namespace difnet::cpu::DIFNET_ISA
