// exp(x) = 2^n p(r), x = n ln2 + r: n an integer, |r| <= ln2 / 2, p the minimax polynomial of relative error 7.5e-8
// (fp64: 3e-18). Adding kRound leaves n in the low bits of a floating-point number, where a shift makes it 2^n.
//
// A logit S_ij serves two rows, and both of its weights have the same p: where the shift of row i is k_i ln2 with an
// integer k_i, they are p 2^(n - k_i) and p 2^(n - k_j). So one polynomial is computed, and each weight costs an
// integer subtraction and a comparison. A weight below the negligible bound of its row is an exact zero, never a number
// that fades out: products with denormal numbers are slow.
//
// An integer that both weights share, m_i + m_j of a bias (bias.h), is one more term of n: it is added to kRound.
#pragma once

#include "cpu/layouts.h"
#include "cpu/simd.h"
#include "cpu/walk/walk.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
struct Base2;
template <>
struct Base2<float> {
  static constexpr float kRound = 12582912.0f, kPerLn2 = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n kLn2High is exact up to n = 2^12
  static constexpr int kShift = 23;
};
template <>
struct Base2<double> {
  static constexpr double kRound = 6755399441055744.0, kPerLn2 = 1.4426950408889634;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kShift = 52;
};

// A weight below 2^-kNegligible of a row whose largest weight is about 1 changes no bit of the sum, also N times over.
template <typename Real>
inline constexpr Real kNegligible = sizeof(Real) == 4 ? 46 : 80;

template <typename Real>
inline constexpr Real kLn2 = Real(0.69314718055994530942);

DIFNET_INLINE Vec<float> polynomial(Vec<float> r) {
  Vec<float> p = r * 0.00829766482f + 0.0419154309f;
  p = p * r + 0.166675749f;
  p = p * r + 0.499988944f;
  p = p * r + 0.999999692f;
  return p * r + 1.00000007f;
}

DIFNET_INLINE Vec<double> polynomial(Vec<double> r) {
  Vec<double> p = r * 2.49942357177112633e-8 + 2.76323071057531589e-7;
  p = p * r + 2.75576228245948636e-6;
  p = p * r + 2.48014864844190613e-5;
  p = p * r + 1.98412694322511888e-4;
  p = p * r + 1.38888889489512582e-3;
  p = p * r + 8.33333333355953462e-3;
  p = p * r + 4.16666666664926402e-2;
  p = p * r + 1.66666666666661680e-1;
  p = p * r + 5.00000000000001770e-1;
  p = p * r + 1.0;
  return p * r + 1.0;
}

template <typename Real>
using BitsOf = typename VectorOf<Real, kRegisterBytes>::Bits;

// exp of a logit, before it is known for which row.
template <typename Real>
struct Exponential {
  Vec<Real> rounded;  // kRound + n
  BitsOf<Real> bits;  // of p, with n added to its exponent (modulo what the exponent can hold)
};

// exp(x + m ln2) for |x| <= kInRange (walk.h) and `round` = kRound + m, m an integer below 2^21.
template <typename Real>
DIFNET_INLINE Exponential<Real> exponential_parts(Vec<Real> x, Vec<Real> round) {
  using V = Vec<Real>;
  using B = Base2<Real>;
  const V rounded = x * B::kPerLn2 + round, n = rounded - round;
  const V r = (x - n * B::kLn2High) - n * B::kLn2Low;
  return {rounded, BitsOf<Real>(polynomial(r)) + (BitsOf<Real>(rounded) << B::kShift)};
}

// exp(x - shift) of the row with this limit and exponent (Shifts in walk.h), or zero where that is negligible.
template <typename Real>
DIFNET_INLINE Vec<Real> weight(const Exponential<Real>& x, Vec<Real> limit, Vec<Real> exponent) {
  const Vec<Real> power = Vec<Real>(x.bits - BitsOf<Real>(exponent));
  return x.rounded > limit ? power : Vec<Real>{};
}

// The same for logits of any size, from x - shift <= 88 (709 in fp64): one polynomial per weight. NaN stays NaN.
template <typename V>
DIFNET_INLINE V exponential(V x) {
  using Real = decltype(x[0] + x[0]);
  const V lowest = broadcast<V>(-kNegligible<Real> * kLn2<Real>);
  const V power = V(exponential_parts<Real>(x > lowest ? x : lowest, broadcast<V>(Base2<Real>::kRound)).bits);
  return x > lowest ? power : x != x ? x : V{};
}

// The lanes of x where a shift is a multiple of ln2.
template <typename V>
DIFNET_INLINE auto shift_in_range(V x) {
  using Real = decltype(x[0] + x[0]);
  return (x <= broadcast<V>(Real(kShiftInRange))) & (x >= broadcast<V>(Real(-kShiftInRange)));
}

// Shifts kWidth rows from number `at` on by x, or by the nearest multiple k ln2 where that is in range; m is the integer
// of their own bias, which the exponents of their weights hold, too.
template <typename Real>
DIFNET_INLINE void set_shifts(Shifts<Real>& rows, int at, Vec<Real> x, Vec<Real> m) {
  using V = Vec<Real>;
  using B = Base2<Real>;
  const V rounded = x * B::kPerLn2 + B::kRound;
  store(rows.shift + at, shift_in_range(x) ? (rounded - B::kRound) * kLn2<Real> : x);
  store(rows.limit + at, rounded + m - kNegligible<Real>);
  store(rows.exponent + at, V(BitsOf<Real>(rounded + m) << B::kShift));
}

// The same for rows whose weights are exp(S - x): what is left of x leaves as the factor e^(k ln2 - x) of the row.
template <typename Real>
DIFNET_INLINE Vec<Real> set_shifts_and_rest(Shifts<Real>& rows, int at, Vec<Real> x, Vec<Real> m) {
  using V = Vec<Real>;
  using B = Base2<Real>;
  set_shifts(rows, at, x, m);
  const V n = (x * B::kPerLn2 + B::kRound) - B::kRound;
  const V rest = (x - n * B::kLn2High) - n * B::kLn2Low;
  return shift_in_range(x) ? polynomial(-rest) : broadcast<V>(Real(1));
}

// The integers k + m of a row in range, whose shift is k ln2, as a number.
template <typename Real>
DIFNET_INLINE Real shift_exponent(const Shifts<Real>& rows, int n) {
  return rows.limit[n] - Base2<Real>::kRound + kNegligible<Real>;
}

}  // namespace difnet::cpu::DIFNET_ISA
