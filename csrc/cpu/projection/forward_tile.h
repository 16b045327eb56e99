// Ψ1 over a band of windows: rows of z, pooled along x, then merged into every row of windows that holds them. Both
// halves keep the first of equal values in scan order, so the whole does.
//
// z is computed as sign(slope) z, which is exact, so a maximum is sought in every channel.
#pragma once

#include "cpu/projection/tile.h"

namespace difnet::cpu::DIFNET_ISA {

// The best pixels of one panel of one window so far: values, and indices in the bits of Real.
template <typename Real>
struct Best {
  Vec<Real> value[2];
  Vec<Real> index[2];
};

template <typename Real>
DIFNET_INLINE Best<Real> load_best(const Real* value, const Real* index) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
  return {{load<V>(value), load<V>(value + W)}, {load<V>(index), load<V>(index + W)}};
}

template <typename Real>
DIFNET_INLINE void store_best(const Best<Real>& best, Real* value, Real* index) {
  constexpr int W = kWidth<Real>;
  for (int half = 0; half < 2; ++half) {
    store(value + half * W, best.value[half]);
    store(index + half * W, best.index[half]);
  }
}

template <typename Real>
DIFNET_INLINE Best<Real> only_pixel(const Real* z, int64_t index) {
  using V = Vec<Real>;
  using Bits = typename VectorOf<Real, kRegisterBytes>::Bits;
  using Index = decltype(Bits{}[0] + 0);
  const V indices = V(broadcast<Bits>(Index(index)));
  return {{load<V>(z), load<V>(z + kWidth<Real>)}, {indices, indices}};
}

// Lets `fresh`, which comes later in scan order, win. Plain: there is no NaN, and every channel seeks a maximum. Else a
// NaN wins, the last one as in torch, and channels whose sign is 0 keep what they have.
template <bool Plain, typename Real>
DIFNET_INLINE void challenge(Best<Real>& best, const Best<Real>& fresh, const Real* sign) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const V old = best.value[half], young = fresh.value[half];
    auto wins = young > old;
    if constexpr (!Plain) {
      wins &= load<V>(sign + half * W) != V{};
      wins |= young != young;
    }
    best.value[half] = wins ? young : old;
    best.index[half] = wins ? fresh.index[half] : best.index[half];
  }
}

// Pools a run along x: windows that begin in it start anew, one that began before goes on from the row's best.
template <bool Plain, typename Real>
DIFNET_INLINE void pool_run(const ProjectionForward<Real>& task, const Band& band, const Run& run,
                            const ProjectionForwardScratch<Real>& work) {
  constexpr int P = kNR<Real>;
  const Axis& axis = task.size.axis[2];
  const int64_t windows = band.to[2] - band.from[2], end = run.x + run.length;
  const int64_t row = (run.z * task.size.axis[1].pixels + run.y) * axis.pixels;
  const int64_t first = run.x * axis.windows / axis.pixels;
  for (int64_t panel = 0; panel < task.size.panels; ++panel) {
    const Real* z = work.z + (panel * kTile + run.at - run.x) * P;  // of pixel x at z + x * P
    const Real* sign = task.sign + panel * P;
    Real* values = work.row_best + (panel * windows - band.from[2]) * P;
    Real* indices = work.row_index + (panel * windows - band.from[2]) * P;
    for (int64_t i = first > band.from[2] ? first : band.from[2]; i < band.to[2] && axis.start[i] < end; ++i) {
      const int64_t last = axis.end[i] < end ? axis.end[i] : end;
      int64_t x = axis.start[i];
      Best<Real> best;
      if (x >= run.x) {
        best = only_pixel(z + x * P, row + x);
        ++x;
      } else {
        best = load_best(values + i * P, indices + i * P);
        x = run.x;
      }
      for (; x < last; ++x) challenge<Plain>(best, only_pixel(z + x * P, row + x), sign);
      store_best(best, values + i * P, indices + i * P);
    }
  }
}

// Merges the pooled row (z, y) into the rows of windows that hold it.
template <bool Plain, typename Real>
DIFNET_INLINE void merge_row(const ProjectionForward<Real>& task, const Band& band, const Run& run,
                             const ProjectionForwardScratch<Real>& work) {
  constexpr int P = kNR<Real>;
  const Axis& axis = task.size.axis[1];
  const int64_t windows = band.to[2] - band.from[2], stored = task.size.panels * windows * P;
  const int64_t first = run.y * axis.windows / axis.pixels;
  for (int64_t i = first > band.from[1] ? first : band.from[1]; i < band.to[1] && axis.start[i] <= run.y; ++i) {
    Real* values = work.band_best + (i - band.from[1]) * stored;
    Real* indices = work.band_index + (i - band.from[1]) * stored;
    const bool fresh = run.z == task.size.axis[0].start[band.from[0]] && run.y == axis.start[i];
    for (int64_t panel = 0, at = 0; panel < task.size.panels; ++panel)
      for (int64_t x = 0; x < windows; ++x, at += P) {
        const Best<Real> row = load_best(work.row_best + at, work.row_index + at);
        Best<Real> best = fresh ? row : load_best(values + at, indices + at);
        if (!fresh) challenge<Plain>(best, row, task.sign + panel * P);
        store_best(best, values + at, indices + at);
      }
  }
}

// Adds the pixels of a run that belong to the band (a pixel belongs to the last window that begins at or before it) to
// the moments of z, about the mean so far: what cancels is then no larger than the variance.
template <typename Real>
DIFNET_INLINE void add_moments(const ProjectionForward<Real>& task, const Box& own, const Run& run, const Real* z,
                               Moments& moments) {
  using V = Vec<Real>;
  constexpr int P = kNR<Real>, W = kWidth<Real>;
  if (run.z >= own.to[0] || run.y >= own.to[1] || run.x >= own.to[2]) return;
  const int64_t length = own.to[2] - run.x < run.length ? own.to[2] - run.x : run.length;
  const double before = moments.count, count = double(length), weight = count / (before + count);
  for (int64_t panel = 0; panel < task.size.panels; ++panel) {
    const Real* pixel = z + (panel * kTile + run.at) * P;
    double *mean = moments.mean + panel * P, *deviation = moments.deviation + panel * P;
    alignas(64) Real about[P], sum[P], squares[P];
    for (int lane = 0; lane < P; ++lane) about[lane] = before > 0 ? Real(mean[lane]) : pixel[lane];
    V total[2] = {}, total_squares[2] = {};
    for (int64_t n = 0; n < length; ++n)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const V off = load<V>(pixel + n * P + half * W) - load<V>(about + half * W);
        total[half] += off;
        total_squares[half] += off * off;
      }
    for (int half = 0; half < 2; ++half) {
      store(sum + half * W, total[half]);
      store(squares + half * W, total_squares[half]);
    }
    for (int lane = 0; lane < P; ++lane) {  // Chan, Golub, LeVeque 1983: two sets of moments become one
      const double off = double(sum[lane]) / count, apart = double(about[lane]) + off - mean[lane];
      deviation[lane] += double(squares[lane]) - off * double(sum[lane]) + apart * apart * before * weight;
      mean[lane] += apart * weight;
    }
  }
  moments.count += count;
}

// 0 z is NaN where z is NaN or infinite, and NaN survives every sum.
template <typename Real>
DIFNET_INLINE bool tile_is_finite(const ProjectionSizes& size, const Real* z, int64_t count) {
  using V = Vec<Real>;
  constexpr int P = kNR<Real>, W = kWidth<Real>;
  constexpr int kAtOnce = 4;  // pixels: one sum would wait for itself
  V sum[kAtOnce][2] = {};
  const auto add = [&](int at, const Real* x) __attribute__((always_inline)) {
    sum[at][0] += load<V>(x) * Real(0);
    sum[at][1] += load<V>(x + W) * Real(0);
  };
  for (int64_t panel = 0; panel < size.panels; ++panel) {
    const Real *x = z + panel * kTile * P, *end = x + count * P;
    for (; x + kAtOnce * P <= end; x += kAtOnce * P)
#pragma GCC unroll 4
      for (int at = 0; at < kAtOnce; ++at) add(at, x + at * P);
    for (; x < end; x += P) add(0, x);
  }
  for (int at = 1; at < kAtOnce; ++at)
    for (int half = 0; half < 2; ++half) sum[0][half] += sum[at][half];
  return sum_lanes(sum[0][0] + sum[0][1]) == 0;
}

template <typename Real>
void projection_forward_prepare(const ProjectionForward<Real>& task, int64_t block) {
  read_weight_panels(task.size, task.weight, block, task.signed_weight,
                     [&](Real w, int64_t d) { return task.sign[d] < 0 ? -w : w; });
}

// Value and position of `lanes` channels of one window, `stride` apart.
template <typename Real>
DIFNET_INLINE void write_window(const Real* value, const Real* index, const Real* sign, int64_t lanes, int64_t stride,
                                Real* peak, int32_t* position) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    peak[lane * stride] = sign[lane] < 0 ? -value[lane] : value[lane];
    if constexpr (sizeof(Real) == 4)
      position[lane * stride] = __builtin_bit_cast(int32_t, index[lane]);
    else
      position[lane * stride] = int32_t(__builtin_bit_cast(int64_t, index[lane]));
  }
}

template <typename Real>
DIFNET_INLINE void write_band(const ProjectionForward<Real>& task, const Band& band,
                              const ProjectionForwardScratch<Real>& work) {
  constexpr int P = kNR<Real>;
  const PooledStrides& to = task.pooled;
  const Real *value = work.band_best, *index = work.band_index;
  for (int64_t y = band.from[1]; y < band.to[1]; ++y)
    for (int64_t panel = 0; panel < task.size.panels; ++panel)
      for (int64_t x = band.from[2]; x < band.to[2]; ++x, value += P, index += P) {
        const int64_t at = band.image * to.image + band.from[0] * to.axis[0] + y * to.axis[1] + x * to.axis[2] +
                           panel * P * to.channel;
        const Real* sign = task.sign + panel * P;
        const int64_t lanes = panel_channels(task.size, panel, P);
        if (to.channel == 1 && lanes == P)  // as the operator allocates it: constants the compiler can make vectors of
          write_window(value, index, sign, P, 1, task.peak + at, task.position + at);
        else
          write_window(value, index, sign, lanes, to.channel, task.peak + at, task.position + at);
      }
}

// Products is who multiplies: the vectors (tile.h), or a matrix unit (unit.h).
template <typename Real, typename Products = VectorProjection<Real>>
void projection_forward_pool(const ProjectionForward<Real>& task, const Band& band,
                             const ProjectionForwardScratch<Real>& work, Moments* moments) {
  const ProjectionSizes& size = task.size;
  const Volume& volume = task.features[band.image];
  const Products products(size, volume, task.signed_weight, task.unit, work.unit);
  Box box, own;
  for (int a = 0; a < 3; ++a) {
    box.from[a] = own.from[a] = size.axis[a].start[band.from[a]];
    box.to[a] = size.axis[a].end[band.to[a] - 1];
    own.to[a] = size.axis[a].start[band.to[a]];
  }
  bool plain = !task.any_flat;
  for (int64_t first = 0; first < box.pixels(); first += kTile) {
    const int64_t left = box.pixels() - first, count = left < kTile ? left : kTile;
    for (int64_t block = 0; block < size.blocks; ++block) {
      read_features(volume, size, block, box, first, count, work.features);
      products.project(block, work.features, count, work.z, prefetch_after(volume, size, box, first, count, block));
    }
    products.finish(count, work.z);
    plain = plain && tile_is_finite(size, work.z, count);
    for_each_run(box, first, count, [&](const Run& run) {
      if (moments != nullptr) add_moments(task, own, run, work.z, *moments);
      const bool row_ends = run.x + run.length == box.to[2];
      if (plain) {
        pool_run<true>(task, band, run, work);
        if (row_ends) merge_row<true>(task, band, run, work);
      } else {
        pool_run<false>(task, band, run, work);
        if (row_ends) merge_row<false>(task, band, run, work);
      }
    });
  }
  write_band(task, band, work);
}

}  // namespace difnet::cpu::DIFNET_ISA
