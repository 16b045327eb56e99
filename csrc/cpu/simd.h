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

}  // namespace difnet::cpu::DIFNET_ISA
