// Vectors of the instruction set this file is compiled for, in the compiler's own vector types: no intrinsics, so the
// same kernels serve AVX-512, AVX2, SSE2 and NEON. Real is float or double; W its lanes in one register.
#pragma once

#include <stdint.h>

#include "cpu/tile.h"

namespace difnet::cpu::DIFNET_ISA {

#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
inline constexpr int kRegisterBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kRegisterBytes = 16, kRegisters = 32;
#else
inline constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif

#define DIFNET_INLINE static inline __attribute__((always_inline))
#define DIFNET_MEMBER inline __attribute__((always_inline))

// A register (or half of one) of Real, and the integers of the same width that its bits are.
template <typename Real, int Bytes>
struct VectorOf;
#define DIFNET_VECTOR(REAL, INTEGER, BYTES)                                                       \
  template <>                                                                                     \
  struct VectorOf<REAL, BYTES> {                                                                  \
    typedef REAL Type __attribute__((vector_size(BYTES)));                                        \
    typedef REAL Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias)); \
    typedef INTEGER Bits __attribute__((vector_size(BYTES)));                                     \
  };
DIFNET_VECTOR(float, uint32_t, 64)
DIFNET_VECTOR(float, uint32_t, 32)
DIFNET_VECTOR(float, uint32_t, 16)
DIFNET_VECTOR(float, uint32_t, 8)
DIFNET_VECTOR(double, uint64_t, 64)
DIFNET_VECTOR(double, uint64_t, 32)
DIFNET_VECTOR(double, uint64_t, 16)
#undef DIFNET_VECTOR

template <int Bytes>
struct VectorOf<Bf16Pair, Bytes> {
  typedef uint32_t Type __attribute__((vector_size(Bytes)));
  typedef uint32_t Unaligned __attribute__((vector_size(Bytes), aligned(sizeof(Bf16Pair)), may_alias));
};

template <typename Real, int Bytes = kRegisterBytes>
using Vec = typename VectorOf<Real, Bytes>::Type;

template <typename Real>
inline constexpr int kWidth = kRegisterBytes / int(sizeof(Real));

template <typename V, typename Real>
DIFNET_INLINE V load(const Real* from) {
  return *reinterpret_cast<const typename VectorOf<Real, sizeof(V)>::Unaligned*>(from);
}

template <typename V, typename Real>
DIFNET_INLINE void store(Real* to, V x) {
  *reinterpret_cast<typename VectorOf<Real, sizeof(V)>::Unaligned*>(to) = x;
}

template <typename V, typename Real>
DIFNET_INLINE V broadcast(Real x) {
  return x - V{};  // the compiler's spelling of a broadcast; x - 0 keeps the sign of zero and every NaN
}
template <typename V>
DIFNET_INLINE V broadcast(Bf16Pair x) {
  using F = typename VectorOf<float, sizeof(V)>::Type;
  return V(broadcast<F>(__builtin_bit_cast(float, x)));  // loaded as a float: integers make a detour
}

// The larger one; a NaN in `fresh` keeps `best`, so that NaN never steers a branch.
template <typename V>
DIFNET_INLINE V larger(V best, V fresh) {
  return fresh > best ? fresh : best;
}

// The first half of x, a register that costs nothing.
template <typename Real, typename V>
DIFNET_INLINE Vec<Real, sizeof(V) / 2> first_half(V x) {
  Vec<Real, sizeof(V) / 2> half;
  __builtin_memcpy(&half, &x, sizeof(half));
  return half;
}

// The lanes of x folded into one by `fold`, halves first.
template <typename V, typename Fold>
DIFNET_INLINE auto fold_lanes(V x, Fold fold) {
  using Real = decltype(x[0] + x[0]);
  if constexpr (sizeof(V) == 2 * sizeof(Real)) {
    return fold(V{x[0]}, V{x[1]})[0];
  } else {
    using Half = Vec<Real, sizeof(V) / 2>;
    Half low, high;
    __builtin_memcpy(&low, &x, sizeof(Half));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(Half), sizeof(Half));
    return fold_lanes(fold(low, high), fold);
  }
}

template <typename V>
DIFNET_INLINE auto largest_lane(V x) {
  return fold_lanes(x, [](auto best, auto fresh) { return larger(best, fresh); });
}

template <typename V>
DIFNET_INLINE auto sum_lanes(V x) {
  return fold_lanes(x, [](auto left, auto right) { return left + right; });
}

// exp(x) for x <= 88 (709 in fp64); below -87 (-708) it stays at the smallest normal number instead of fading out, NaN
// stays NaN. x = n ln2 + r, exp(x) = 2^n p(r); p is the minimax polynomial of relative error 7.5e-8 (fp64: 3e-18) on
// |r| <= ln2 / 2. Adding `round` leaves n in the low bits of a floating-point number, where a shift makes it 2^n.
DIFNET_INLINE Vec<float> exponential(Vec<float> x) {
  using V = Vec<float>;
  using Bits = VectorOf<float, kRegisterBytes>::Bits;
  const V lowest = broadcast<V>(-87.0f), round = broadcast<V>(12582912.0f);
  x = lowest > x ? lowest : x;
  const V shifted = x * 1.44269504f + round;
  const V r = x - (shifted - round) * 0.69314718f;
  V p = r * 0.00829766482f + 0.0419154309f;
  p = p * r + 0.166675749f;
  p = p * r + 0.499988944f;
  p = p * r + 0.999999692f;
  p = p * r + 1.00000007f;
  return V(Bits(p) + (Bits(shifted) << 23));
}

DIFNET_INLINE Vec<double> exponential(Vec<double> x) {
  using V = Vec<double>;
  using Bits = VectorOf<double, kRegisterBytes>::Bits;
  const V lowest = broadcast<V>(-708.0), round = broadcast<V>(6755399441055744.0);
  x = lowest > x ? lowest : x;
  const V shifted = x * 1.4426950408889634 + round;
  const V n = shifted - round;
  const V r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;  // ln2 in two parts
  V p = r * 2.49942357177112633e-8 + 2.76323071057531589e-7;
  p = p * r + 2.75576228245948636e-6;
  p = p * r + 2.48014864844190613e-5;
  p = p * r + 1.98412694322511888e-4;
  p = p * r + 1.38888889489512582e-3;
  p = p * r + 8.33333333355953462e-3;
  p = p * r + 4.16666666664926402e-2;
  p = p * r + 1.66666666666661680e-1;
  p = p * r + 5.00000000000001770e-1;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return V(Bits(p) + (Bits(shifted) << 52));
}

}  // namespace difnet::cpu::DIFNET_ISA
