// Ψ2-Ψ4 on a tile of pixels. Every pixel looks up the windows that hold it and takes the gradients of those that chose
// it, so nothing is scattered and one order of summation holds.
#pragma once

#include "cpu/projection/tile.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
void projection_backward_prepare(const ProjectionBackward<Real>& task, int64_t block) {
  const ProjectionSizes& size = task.size;
  const int64_t depth = block_channels(size, block);
  if (task.grad_variance != nullptr && task.z == nullptr)
    read_weight_panels(size, task.weight, block, task.weight_panels, [](Real w, int64_t) { return w; });
  if (task.grad_features == nullptr) return;
  for (int64_t d = 0; d < size.embed; ++d) {
    Real* to = task.weight_blocks + (block * size.embed + d) * kTile;
    for (int64_t c = 0; c < kTile; ++c) to[c] = c < depth ? task.weight[d * size.channels + block * kTile + c] : 0;
  }
}

// z of a tile, from where the forward left it.
template <typename Real>
DIFNET_INLINE void read_z(const ProjectionSizes& size, const Real* from, int64_t count, Real* z) {
  constexpr int P = kNR<Real>;
  for (int64_t panel = 0; panel < size.panels; ++panel) {
    const int64_t lanes = panel_channels(size, panel, P);
    for (int64_t n = 0; n < count; ++n)
      for (int64_t lane = 0; lane < P; ++lane)
        z[(panel * kTile + n) * P + lane] = lane < lanes ? from[n * size.embed + panel * P + lane] : 0;
  }
}

// (Ψ2), the part of the statistics: z becomes (grad_mean + 2 (z - mean) grad_variance) / n.
template <typename Real>
DIFNET_INLINE void differentiate_moments(const ProjectionBackward<Real>& task, int64_t count, Real* z) {
  constexpr int P = kNR<Real>;
  for (int64_t panel = 0; panel < task.size.panels; ++panel) {
    Real shift[P] = {}, slope[P] = {}, about[P] = {};
    for (int64_t lane = 0; lane < panel_channels(task.size, panel, P); ++lane) {
      const int64_t d = panel * P + lane;
      if (task.grad_mean != nullptr) shift[lane] = Real(double(task.grad_mean[d]) / task.pixels);
      if (task.grad_variance == nullptr) continue;
      slope[lane] = Real(2 * double(task.grad_variance[d]) / task.pixels);
      about[lane] = task.mean[d];
    }
    Real* to = z + panel * kTile * P;
    for (int64_t n = 0; n < count; ++n, to += P)
      if (task.grad_variance != nullptr)
        for (int lane = 0; lane < P; ++lane) to[lane] = shift[lane] + slope[lane] * (to[lane] - about[lane]);
      else
        for (int lane = 0; lane < P; ++lane) to[lane] = shift[lane];
  }
}

// (Ψ2), the part of the peaks: what one window gives to the pixels [from, to) of a row, whose gradients start at
// grad_z.
template <typename Real>
DIFNET_INLINE void take_from_window(const ProjectionBackward<Real>& task, int64_t window, int64_t from, int64_t to,
                                    Real* grad_z) {
  constexpr int P = kNR<Real>;
  for (int64_t panel = 0; panel < task.size.panels; ++panel) {
    const Real* grad = task.grad_peak + window * task.size.embed + panel * P;
    const int32_t* position = task.position + window * task.size.embed + panel * P;
    const int64_t lanes = panel_channels(task.size, panel, P);
    Real* pixel = grad_z + panel * kTile * P;
    for (int64_t p = from; p < to; ++p, pixel += P)
      if (lanes == P)
        for (int lane = 0; lane < P; ++lane) pixel[lane] += position[lane] == p ? grad[lane] : Real(0);
      else
        for (int lane = 0; lane < lanes; ++lane) pixel[lane] += position[lane] == p ? grad[lane] : Real(0);
  }
}

// Windows of `axis` that hold a pixel of [from, to).
struct WindowRange {
  int64_t from, to;
};
DIFNET_INLINE WindowRange windows_of(const Axis& axis, int64_t from, int64_t to) {
  return {from * axis.windows / axis.pixels, (to * axis.windows + axis.pixels - 1) / axis.pixels};
}

template <typename Real>
DIFNET_INLINE void take_from_windows(const ProjectionBackward<Real>& task, int64_t image, const Run& run,
                                     Real* grad_z) {
  const Axis *axis = task.size.axis, &along = axis[2];
  const WindowRange z = windows_of(axis[0], run.z, run.z + 1), y = windows_of(axis[1], run.y, run.y + 1),
                    x = windows_of(along, run.x, run.x + run.length);
  const int64_t row = (run.z * axis[1].pixels + run.y) * along.pixels;
  for (int64_t k = z.from; k < z.to; ++k)
    for (int64_t j = y.from; j < y.to; ++j)
      for (int64_t i = x.from; i < x.to; ++i) {
        const int64_t window = ((image * axis[0].windows + k) * axis[1].windows + j) * along.windows + i;
        const int64_t from = along.start[i] > run.x ? along.start[i] : run.x;
        const int64_t to = along.end[i] < run.x + run.length ? along.end[i] : run.x + run.length;
        take_from_window(task, window, row + from, row + to, grad_z + (run.at + from - run.x) * kNR<Real>);
      }
}

// (Ψ4) the tile's part of grad_weight, transposed, added to the share of its part of the batch.
template <typename Real>
DIFNET_INLINE void add_grad_weight(const ProjectionBackward<Real>& task, bool innermost, int64_t block, int64_t part,
                                   bool first, const Real* features, const Real* grad_z, int64_t count) {
  constexpr int P = kNR<Real>;
  const ProjectionSizes& size = task.size;
  const int64_t depth = block_channels(size, block), padded = size.blocks * kTile;
  for (int64_t panel = 0; panel < size.panels; ++panel) {
    Real* out = task.shares + ((part * size.panels + panel) * padded + block * kTile) * P;
    const Real* grad = grad_z + panel * kTile * P;
    if (innermost)
      for (int64_t c = 0; c < depth; c += kMR) multiply<1, kTile, P, P>(features + c, grad, count, !first, out + c * P);
    else
      for (int64_t c = 0; c < depth; c += kMR)
        multiply<kTile, 1, P, P>(features + c * kTile, grad, count, !first, out + c * P);
  }
}

// (Ψ3) grad_features of a tile and a block of channels, in the order of its memory.
template <typename Real>
DIFNET_INLINE void project_back(const ProjectionBackward<Real>& task, bool innermost, int64_t block,
                                const Real* by_channel, int64_t count, Real* grad_features) {
  constexpr int P = kNR<Real>;
  const ProjectionSizes& size = task.size;
  const Real* weight = task.weight_blocks + block * size.embed * kTile;
  const int64_t depth = block_channels(size, block);
  const int64_t rows = innermost ? count : depth, columns = innermost ? depth : count;
  const Real *left = innermost ? by_channel : weight, *right = innermost ? weight : by_channel;
  for (int64_t column = 0; column < columns; column += P)
    for (int64_t row = 0; row < rows; row += kMR)
      multiply<1, kTile, kTile, kTile>(left + row, right + column, size.embed, false,
                                       grad_features + row * kTile + column);
}

// Ψ3 and Ψ4 of a tile, from its gradients of z.
template <typename Real>
struct VectorGradients {
  using Projection = VectorProjection<Real>;
  const ProjectionBackward<Real>& task;
  const ProjectionBackwardScratch<Real>& work;
  const int64_t count;

  DIFNET_MEMBER VectorGradients(const ProjectionBackward<Real>& task, const ProjectionBackwardScratch<Real>& work,
                                int64_t count)
      : task(task), work(work), count(count) {}
  DIFNET_MEMBER void to_weight(bool innermost, int64_t block, int64_t part, bool first, Real* features) const {
    add_grad_weight(task, innermost, block, part, first, features, work.grad_z, count);
  }
  DIFNET_MEMBER void to_features(bool innermost, int64_t block) const {
    project_back(task, innermost, block, work.grad_z_by_channel, count, work.grad_features);
  }
};

template <typename Real, typename Gradients = VectorGradients<Real>>
void projection_backward_tile(const ProjectionBackward<Real>& task, int64_t image, int64_t tile, int64_t part,
                              bool first_of_part, const ProjectionBackwardScratch<Real>& work) {
  constexpr int P = kNR<Real>;
  const ProjectionSizes& size = task.size;
  const Volume& volume = task.features[image];
  const Box box = {{0, 0, 0}, {size.axis[0].pixels, size.axis[1].pixels, size.axis[2].pixels}};
  const int64_t first = tile * kTile, left = box.pixels() - first, count = left < kTile ? left : kTile;
  const bool project = task.grad_variance != nullptr && task.z == nullptr;
  if (task.grad_weight != nullptr || project) {
    const typename Gradients::Projection products(size, volume, task.weight_panels, task.unit, work.unit);
    for (int64_t block = 0; block < size.blocks; ++block) {
      Real* features = work.features + block * kTile * kTile;
      read_features(volume, size, block, box, first, count, features);
      if (project)
        products.project(block, features, count, work.grad_z, prefetch_after(volume, size, box, first, count, block));
    }
    if (project) products.finish(count, work.grad_z);
  }
  if (task.grad_variance != nullptr && task.z != nullptr)
    read_z(size, task.z + (image * box.pixels() + first) * size.embed, count, work.grad_z);
  differentiate_moments(task, count, work.grad_z);
  for_each_run(box, first, count, [&](const Run& run) { take_from_windows(task, image, run, work.grad_z); });
  if (task.grad_features != nullptr)
    for (int64_t d = 0; d < size.embed; ++d)
      for (int64_t n = 0; n < count; ++n)
        work.grad_z_by_channel[d * kTile + n] = work.grad_z[(d / P * kTile + n) * P + d % P];
  const Gradients gradients(task, work, count);
  if (task.grad_weight != nullptr)
    for (int64_t block = 0; block < size.blocks; ++block)
      gradients.to_weight(channels_innermost(volume), block, part, first_of_part,
                          work.features + block * kTile * kTile);
  if (task.grad_features == nullptr) return;
  const Volume& grads = task.grad_features[image];
  for (int64_t block = 0; block < size.blocks; ++block) {
    gradients.to_features(channels_innermost(grads), block);
    write_features(work.grad_features, size, block, box, first, count, grads);
  }
}

// (Ψ4) the shares of one block of channels summed, in order of the parts.
template <typename Real>
void projection_backward_finish(const ProjectionBackward<Real>& task, int64_t block) {
  constexpr int P = kNR<Real>;
  const ProjectionSizes& size = task.size;
  const int64_t padded = size.blocks * kTile, depth = block_channels(size, block);
  for (int64_t panel = 0; panel < size.panels; ++panel)
    for (int64_t c = 0; c < depth; ++c) {
      double sum[P] = {};
      for (int64_t part = 0; part < task.parts; ++part) {
        const Real* share = task.shares + ((part * size.panels + panel) * padded + block * kTile + c) * P;
        for (int lane = 0; lane < P; ++lane) sum[lane] += double(share[lane]);
      }
      for (int64_t lane = 0; lane < panel_channels(size, panel, P); ++lane)
        task.grad_weight[(panel * P + lane) * size.channels + block * kTile + c] = Real(sum[lane]);
    }
}

}  // namespace difnet::cpu::DIFNET_ISA
