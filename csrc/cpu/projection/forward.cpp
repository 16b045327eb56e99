// Ψ forward: bands of windows are pooled in parallel; moments of the bands are merged in their order, whoever made
// them.

#include "cpu/projection/forward.h"

#include "cpu/projection/windows.h"

namespace difnet::cpu {

// Bands: enough of them for many threads, few enough that rows shared by two bands, which both compute, weigh little.
// They depend on the sizes alone, so the bits do not depend on the number of threads.
static std::vector<Band> bands_of(int64_t images, const ProjectionSizes& size) {
  constexpr int64_t kRows = 12, kColumns = 512;
  const auto parts = [](const Axis& axis, int64_t length) {
    return (std::max(axis.pixels, axis.windows) + length - 1) / length;
  };
  // a multiple of four shares out evenly among two or four threads
  const int64_t rows = std::min(size.axis[1].windows, round_up(parts(size.axis[1], kRows), 4));
  const int64_t columns = std::min(size.axis[2].windows, parts(size.axis[2], kColumns));
  std::vector<Band> bands;
  for (int64_t b = 0; b < images; ++b)
    for (int64_t z = 0; z < size.axis[0].windows; ++z)
      for (int64_t j = 0; j < rows; ++j)
        for (int64_t i = 0; i < columns; ++i)
          bands.push_back({b,
                           {z, j * size.axis[1].windows / rows, i * size.axis[2].windows / columns},
                           {z + 1, (j + 1) * size.axis[1].windows / rows, (i + 1) * size.axis[2].windows / columns}});
  return bands;
}

// Chan, Golub, LeVeque 1983, over the bands in order.
template <typename Real>
static void merge(const std::vector<Moments>& bands, const Real* sign, int64_t channels, Real* mean, Real* variance) {
  for (int64_t d = 0; d < channels; ++d) {
    double count = 0, middle = 0, deviation = 0;
    for (const Moments& band : bands) {
      if (band.count == 0) continue;
      const double apart = band.mean[d] - middle, all = count + band.count;
      deviation += band.deviation[d] + apart * apart * count * band.count / all;
      middle += apart * band.count / all;
      count = all;
    }
    mean[d] = Real(sign[d] < 0 ? -middle : middle);
    variance[d] = Real(std::max(deviation, 0.0) / count);  // a NaN stays one
  }
}

template <typename Real>
static void run(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& slope, const Tensor& peak,
                const Tensor& position, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance) {
  const ProjectionKernels<Real>& kernels = projection_kernels<Real>(features);
  const Windows windows({features.size(2), features.size(3), features.size(4)},
                        {peak.size(2), peak.size(3), peak.size(4)});
  const ProjectionSizes size = projection_sizes(weight, windows, kernels.panel);
  const std::vector<Volume> images = volumes(features);
  const std::vector<Band> bands = bands_of(features.size(0), size);
  const int64_t stored = size.panels * kernels.panel;
  int64_t columns = 0, rows = 0;
  for (const Band& band : bands) {
    columns = std::max(columns, band.to[2] - band.from[2]);
    rows = std::max(rows, band.to[1] - band.from[1]);
  }
  const int64_t threads = workers(int64_t(bands.size()));
  Workspace<Real> work;
  const int64_t signed_weight = work.reserve(size.channels * stored), sign = work.reserve(stored);
  const int64_t tile = work.reserve(threads * kTile * kTile), z = work.reserve(threads * kTile * stored);
  const int64_t row_best = work.reserve(threads * columns * stored);
  const int64_t row_index = work.reserve(threads * columns * stored);
  const int64_t band_best = work.reserve(threads * rows * columns * stored);
  const int64_t band_index = work.reserve(threads * rows * columns * stored);
  const ProjectionUnit& unit = kernels.forward.unit;
  const int64_t unit_of_worker = unit.of_worker != nullptr ? unit.of_worker(size) : 0;
  const int64_t unit_of_blocks = work.reserve(unit.of_block != nullptr ? size.blocks * unit.of_block(size) : 0);
  const int64_t unit_of_workers = work.reserve(threads * unit_of_worker);
  work.allocate(weight);
  ProjectionForward<Real> task{size,
                               images.data(),
                               static_cast<const Real*>(weight.const_data_ptr()),
                               static_cast<Real*>(peak.mutable_data_ptr()),
                               static_cast<int32_t*>(position.mutable_data_ptr()),
                               {peak.stride(0), peak.stride(1), {peak.stride(2), peak.stride(3), peak.stride(4)}},
                               work.at(signed_weight),
                               work.at(sign),
                               false,
                               work.at(unit_of_blocks)};
  const Real* slopes = pointer<const Real>(slope);
  for (int64_t d = 0; d < stored; ++d) {
    const Real s = slopes != nullptr && d < size.embed ? slopes[d] : Real(1);
    task.sign[d] = s < 0 ? Real(-1) : s == 0 ? Real(0) : Real(1);
    task.any_flat = task.any_flat || s == 0;
  }
  std::vector<Moments> moments;
  std::vector<double> sums;
  if (mean.has_value()) {
    sums.resize(2 * bands.size() * stored);
    for (size_t b = 0; b < bands.size(); ++b)
      moments.push_back({0, sums.data() + 2 * b * stored, sums.data() + (2 * b + 1) * stored});
  }
  share_out(size.blocks, [&](int64_t, int64_t block) { kernels.forward.prepare(task, block); });
  share_out(int64_t(bands.size()), [&](int64_t worker, int64_t b) {
    const ProjectionForwardScratch<Real> scratch{work.at(tile + worker * kTile * kTile),
                                                 work.at(z + worker * kTile * stored),
                                                 work.at(row_best + worker * columns * stored),
                                                 work.at(row_index + worker * columns * stored),
                                                 work.at(band_best + worker * rows * columns * stored),
                                                 work.at(band_index + worker * rows * columns * stored),
                                                 work.at(unit_of_workers + worker * unit_of_worker)};
    kernels.forward.pool(task, bands[b], scratch, moments.empty() ? nullptr : &moments[b]);
  });
  if (mean.has_value()) merge(moments, task.sign, size.embed, pointer<Real>(mean), pointer<Real>(variance));
}

void projection_forward(Tensor features, Tensor weight, std::optional<Tensor> slope, Tensor peak, Tensor position,
                        std::optional<Tensor> mean, std::optional<Tensor> variance) {
  const auto task = weight.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  task(features, weight, slope, peak, position, mean, variance);
}

}  // namespace difnet::cpu
