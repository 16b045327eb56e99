// ARM's bf16 products, BFMMLA: sums [2][2] += a [2 rows][4 numbers] b [4 numbers][2 columns]. A register of the unit is
// kept in memory, in the order of their operands, and a product of two of them is 512 instructions.
//
// Where the processor has no extended behaviour for bf16 (FEAT_EBF16), or is not asked for it, each sum of two products
// and each addition of it is rounded to odd, and denormal numbers are zero. So its bits are not those of the model.
#pragma once

#include <arm_neon.h>

#include "cpu/simd.h"

namespace difnet::cpu::DIFNET_ISA {

// An operand: [two rows, or columns][four numbers of each]; sums: [two rows][two columns].
struct BfmmlaRegister {
  uint32x4_t at[kSide / 2][kSide / 2];
};
inline constinit thread_local BfmmlaRegister bfmmla_registers[8] = {};  // one for all sources

class Unit {
 public:
  static void begin(unsigned char*) {}
  static void end(const unsigned char*) {}

  template <int C>
  static DIFNET_MEMBER void clear() {
    for (auto& rows : bfmmla_registers[C].at)
      for (uint32x4_t& sums : rows) sums = uint32x4_t{};
  }
  // [row][pair]: two pairs of a row, then of the next one
  template <int A>
  static DIFNET_MEMBER void load_a(const uint32_t* from) {
    for (int m = 0; m < kSide / 2; ++m, from += 2 * kSide)
      for (int k = 0; k < kSide / 2; k += 2) {
        const uint64x2_t first = vreinterpretq_u64_u32(vld1q_u32(from + 2 * k));
        const uint64x2_t second = vreinterpretq_u64_u32(vld1q_u32(from + kSide + 2 * k));
        bfmmla_registers[A].at[m][k] = vreinterpretq_u32_u64(vzip1q_u64(first, second));
        bfmmla_registers[A].at[m][k + 1] = vreinterpretq_u32_u64(vzip2q_u64(first, second));
      }
  }
  // [pair][column]: two pairs of a column, then of the next one
  template <int B>
  static DIFNET_MEMBER void load_b(const uint32_t* from) {
    for (int k = 0; k < kSide / 2; ++k, from += 2 * kSide)
      for (int n = 0; n < kSide / 2; n += 2) {
        const uint32x4_t first = vld1q_u32(from + 2 * n), second = vld1q_u32(from + kSide + 2 * n);
        bfmmla_registers[B].at[n][k] = vzip1q_u32(first, second);
        bfmmla_registers[B].at[n + 1][k] = vzip2q_u32(first, second);
      }
  }
  template <int C, int A, int B>
  static DIFNET_MEMBER void multiply() {
    multiply(bfmmla_registers[C], bfmmla_registers[A], bfmmla_registers[B]);
  }
  template <int C>
  static DIFNET_MEMBER void write_rows(const float* from, int64_t stride) {
    for (int m = 0; m < kSide / 2; ++m, from += 2 * stride)
      for (int n = 0; n < kSide / 2; ++n)
        bfmmla_registers[C].at[m][n] =
            vreinterpretq_u32_f32(vcombine_f32(vld1_f32(from + 2 * n), vld1_f32(from + stride + 2 * n)));
  }
  template <int C>
  static DIFNET_MEMBER void read_rows(float* to, int64_t stride) {
    for (int m = 0; m < kSide / 2; ++m, to += 2 * stride)
      for (int n = 0; n < kSide / 2; ++n) {
        const float32x4_t sums = vreinterpretq_f32_u32(bfmmla_registers[C].at[m][n]);
        vst1_f32(to + 2 * n, vget_low_f32(sums));
        vst1_f32(to + stride + 2 * n, vget_high_f32(sums));
      }
  }

  static void counts(int64_t* to) { to[0] = to[1] = to[2] = 0; }

 private:
  // A quarter of the sums at a time: 16 chains of them, which the registers hold.
  static __attribute__((noinline)) void multiply(BfmmlaRegister& sums, const BfmmlaRegister& a,
                                                 const BfmmlaRegister& b) {
    constexpr int kChains = 4;
    for (int m = 0; m < kSide / 2; m += kChains)
      for (int n = 0; n < kSide / 2; n += kChains) {
        float32x4_t chain[kChains][kChains];
        for (int i = 0; i < kChains; ++i)
          for (int j = 0; j < kChains; ++j) chain[i][j] = vreinterpretq_f32_u32(sums.at[m + i][n + j]);
        for (int k = 0; k < kSide / 2; ++k)
#pragma GCC unroll 4
          for (int i = 0; i < kChains; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < kChains; ++j)
              chain[i][j] = vbfmmlaq_f32(chain[i][j], vreinterpretq_bf16_u32(a.at[m + i][k]),
                                         vreinterpretq_bf16_u32(b.at[n + j][k]));
        for (int i = 0; i < kChains; ++i)
          for (int j = 0; j < kChains; ++j) sums.at[m + i][n + j] = vreinterpretq_u32_f32(chain[i][j]);
      }
  }
};

}  // namespace difnet::cpu::DIFNET_ISA
