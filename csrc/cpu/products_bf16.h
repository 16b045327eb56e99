// Pairs of bf16 numbers as factors, multiplied and summed by one instruction (AVX-512 BF16): twice the numbers of a
// fp32 multiply-add in each register. Products are exact and sums fp32, so logits of bf16 fields lose nothing; weights
// and fields are rounded to bf16. No compiler finds these instructions by itself: the one file with intrinsics.
#pragma once

#include <immintrin.h>

#include "cpu/convert.h"
#include "cpu/products.h"

namespace difnet::cpu::DIFNET_ISA {

template <>
struct Factors<Bf16Pair> {
  using Number = Bf16;
  using Sum = float;
  static constexpr int kPerFactor = 2;

  static DIFNET_MEMBER Vec<float> multiply_add(Vec<float> sum, Vec<Bf16Pair> x, Vec<Bf16Pair> y) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
  }
  static DIFNET_MEMBER Vec<float, 32> multiply_add(Vec<float, 32> sum, Vec<Bf16Pair, 32> x, Vec<Bf16Pair, 32> y) {
    return (Vec<float, 32>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)y);
  }

  static DIFNET_MEMBER Vec<float> number(Vec<Bf16Pair> x, int which) {
    return which == 0 ? Vec<float>(x << 16) : Vec<float>(x & 0xffff0000u);
  }
  static DIFNET_MEMBER Vec<Bf16Pair> of_lanes(const Vec<float> (&numbers)[2]) {
    const __m512i one_after_the_other = neighbours(numbers);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Vec<Bf16Pair>)_mm512_permutexvar_epi16(order, one_after_the_other);
  }
  static DIFNET_MEMBER void store_neighbours(Bf16Pair* to, const Vec<float> (&numbers)[2]) {
    store(to, (Vec<Bf16Pair>)neighbours(numbers));
  }

 private:
  static DIFNET_MEMBER __m512i neighbours(const Vec<float> (&numbers)[2]) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)numbers[1], (__m512)numbers[0]);
  }
};

DIFNET_INLINE bool all_finite(const Bf16Pair* x, int64_t count) {
  uint16_t largest = 0;  // exponent
  for (const Bf16 *at = numbers(x), *end = at + 2 * count; at < end; ++at) {
    const uint16_t exponent = at->bits & 0x7f80;
    largest = exponent > largest ? exponent : largest;
  }
  return largest < 0x7f80;
}

}  // namespace difnet::cpu::DIFNET_ISA
