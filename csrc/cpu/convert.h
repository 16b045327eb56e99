// Between the fields of the outside (any dtype, any strides) and tiles of Real.
#pragma once

#include "cpu/layouts.h"
#include "field.h"

namespace difnet::cpu::DIFNET_ISA {

struct Half {
  uint16_t bits;
};

// Conversions by integer arithmetic and without branches: the compiler makes vectors of them, and calls no function
// where the instruction set has no half precision.
DIFNET_INLINE float half_to_float(Half half) {
  const uint32_t sign = uint32_t(half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  // no arithmetic on what would be a denormal number: its digits are an integer, and so is a normal one's exponent
  const float small = float(int32_t(magnitude)) * 0x1p-24f;
  const float normal = __builtin_bit_cast(float, (magnitude << 13) + (112u << 23));
  const float finite = magnitude < 0x400u ? small : normal;
  const uint32_t bits = magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) : __builtin_bit_cast(uint32_t, finite);
  return __builtin_bit_cast(float, sign | bits);
}
DIFNET_INLINE Half float_to_half(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value), sign = (bits >> 16) & 0x8000u,
                 magnitude = bits & 0x7fffffffu;
  // subnormal: let the adder round at the right place
  const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
  const uint32_t small = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {uint16_t(sign | half)};
}

template <typename Real>
DIFNET_INLINE Real widen(float x) {
  return Real(x);
}
template <typename Real>
DIFNET_INLINE Real widen(double x) {
  return Real(x);
}
template <typename Real>
DIFNET_INLINE Real widen(Bf16 x) {
  return Real(__builtin_bit_cast(float, uint32_t(x.bits) << 16));
}
template <typename Real>
DIFNET_INLINE Real widen(Half x) {
  return Real(half_to_float(x));
}

DIFNET_INLINE void narrow(double x, float& to) { to = float(x); }
DIFNET_INLINE void narrow(double x, double& to) { to = x; }
DIFNET_INLINE void narrow(float x, float& to) { to = x; }
DIFNET_INLINE void narrow(float x, double& to) { to = x; }
DIFNET_INLINE void narrow(float x, Bf16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = nan ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
DIFNET_INLINE void narrow(float x, Half& to) { to = float_to_half(x); }
template <typename To>
DIFNET_INLINE void narrow(double x, To& to) {
  narrow(float(x), to);
}

// Calls body with a null pointer of the field's element type: the one place where dtypes become types.
template <typename Body>
DIFNET_INLINE void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat: return body(static_cast<float*>(nullptr));
    case DType::kDouble: return body(static_cast<double*>(nullptr));
    case DType::kHalf: return body(static_cast<Half*>(nullptr));
    case DType::kBf16: return body(static_cast<Bf16*>(nullptr));
  }
}

// The nodes of tile `tile` that exist; the rest of the tile is padding.
DIFNET_INLINE int tile_nodes(int64_t nodes, int64_t tile) {
  const int64_t left = nodes - tile * kTile;
  return left < kTile ? int(left) : kTile;
}

// element(channel, node) for every real element of a tile, in the order its memory likes
template <typename Element>
DIFNET_INLINE void for_each_element(const Field& field, int64_t channels, int nodes, Element element) {
  if (field.node_stride <= field.channel_stride) {
    for (int64_t c = 0; c < channels; ++c)
      for (int n = 0; n < nodes; ++n) element(c, n);
  } else {
    for (int n = 0; n < nodes; ++n)
      for (int64_t c = 0; c < channels; ++c) element(c, n);
  }
}

// body(channel, node, number) for every real number of tile `tile`
template <typename Real, typename Body>
DIFNET_INLINE void for_each_number(const Field& field, int64_t channels, int64_t tile, int nodes, Body body) {
  with_type(field.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(field.data) + tile * kTile * field.node_stride;
    for_each_element(field, channels, nodes, [&](int64_t c, int n) {
      body(c, n, widen<Real>(from[c * field.channel_stride + n * field.node_stride]));
    });
  });
}

// A tile of a field into rows with room for `stored` channels, padding nodes and padding channels zero.
template <typename Factor>
void pack_channel_panels(const Field& field, int64_t channels, int64_t tile, int nodes, Factor* rows, int64_t stored) {
  for (int64_t x = 0; x < kTile / kPerFactor<Factor> * stored; ++x) rows[x] = Factor{};
  for_each_number<Sum<Factor>>(field, channels, tile, nodes, [&](int64_t c, int n, auto x) {
    narrow(x, numbers(rows)[in_channel_panels<Factor>(n, c)]);
  });
}

// The same into lane blocks [kTile / kNR][factor][kNR].
template <typename Factor>
void pack_node_panels(const Field& field, int64_t channels, int64_t tile, int nodes, Factor* lanes) {
  constexpr int L = kNR<Factor>, per_factor = kPerFactor<Factor>;
  const int64_t factors = (channels + per_factor - 1) / per_factor;
  if (nodes < kTile || factors * per_factor > channels)
    for (int64_t x = 0; x < kTile * factors; ++x) lanes[x] = Factor{};
  with_type(field.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(field.data) + tile * kTile * field.node_stride;
    const auto read = [&](int64_t c, int n, int64_t node_stride) __attribute__((always_inline)) {
      narrow(widen<Sum<Factor>>(from[c * field.channel_stride + n * node_stride]),
             numbers(lanes)[in_node_panels<Factor>(factors, n, c)]);
    };
    if (field.node_stride == 1 && nodes == kTile) {  // straight copies, which the compiler turns into vectors
      for (int64_t c = 0; c < channels; ++c)
        for (int first = 0; first < kTile; first += L) {
          const auto* row = from + c * field.channel_stride + first;
          auto* to = numbers(lanes) + in_node_panels<Factor>(factors, first, c);
          for (int lane = 0; lane < L; ++lane) narrow(widen<Sum<Factor>>(row[lane]), to[lane * per_factor]);
        }
    } else {
      for_each_element(field, channels, nodes, [&](int64_t c, int n) { read(c, n, field.node_stride); });
    }
  });
}

// Lane blocks already in memory, as rows.
template <typename Real, typename Factor>
void repack_as_channel_panels(const Real* lanes, int64_t channels, Factor* rows, int64_t stored) {
  for (int64_t x = 0; x < kTile / kPerFactor<Factor> * stored; ++x) rows[x] = Factor{};
  for (int n = 0; n < kTile; ++n)
    for (int64_t c = 0; c < channels; ++c)
      narrow(lanes[in_node_panels<Real>(channels, n, c)], numbers(rows)[in_channel_panels<Factor>(n, c)]);
}

template <typename Real>
void unpack_channel_panels(const Real* rows, int64_t channels, int64_t tile, int nodes, const Field& field) {
  with_type(field.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(field.data) + tile * kTile * field.node_stride;
    for_each_element(field, channels, nodes, [&](int64_t c, int n) {
      narrow(rows[in_channel_panels<Real>(n, c)], to[c * field.channel_stride + n * field.node_stride]);
    });
  });
}

// x - x is 0 for finite x and NaN otherwise, and a NaN survives every sum. `count` is a multiple of kTile.
template <typename Real>
DIFNET_INLINE bool all_finite(const Real* x, int64_t count) {
  Vec<Real> sum = {};
  for (const Real* end = x + count; x < end; x += kWidth<Real>) {
    const Vec<Real> value = load<Vec<Real>>(x);
    sum += value - value;
  }
  return sum_lanes(sum) == 0;
}

}  // namespace difnet::cpu::DIFNET_ISA
