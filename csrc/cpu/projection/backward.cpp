// Ψ backward: tiles of pixels in parallel. grad_weight is summed in parts of the batch whose number depends on the
// projection_sizes alone, and the parts in their order.

#include "cpu/projection/backward.h"

#include "cpu/projection/windows.h"

namespace difnet::cpu {

template <typename Real>
static void run(const Tensor& grad_peak, const std::optional<Tensor>& grad_mean,
                const std::optional<Tensor>& grad_variance, const Tensor& features, const Tensor& weight,
                const Tensor& position, const std::optional<Tensor>& z, const std::optional<Tensor>& mean,
                const std::optional<Tensor>& grad_features, const std::optional<Tensor>& grad_weight) {
  // few parts, because each holds a copy of grad_weight, and a multiple of four, for two or four threads
  constexpr int64_t kParts = 16, kTilesPerPart = 8;
  const ProjectionKernels<Real>& kernels = projection_kernels<Real>(features);
  const Windows windows({features.size(2), features.size(3), features.size(4)},
                        {grad_peak.size(1), grad_peak.size(2), grad_peak.size(3)});
  const ProjectionSizes size = projection_sizes(weight, windows, kernels.panel);
  const std::vector<Volume> images = volumes(features);
  const std::vector<Volume> grads = grad_features.has_value() ? volumes(*grad_features) : std::vector<Volume>();
  const int64_t pixels = features.size(2) * features.size(3) * features.size(4);
  const int64_t per_image = (pixels + kTile - 1) / kTile, tiles = features.size(0) * per_image;
  const int64_t parts = std::min({tiles, kParts, round_up((tiles + kTilesPerPart - 1) / kTilesPerPart, 4)});
  const int64_t stored = size.panels * kernels.panel, padded = size.blocks * kTile, threads = workers(parts);
  const ProjectionUnit& unit = kernels.backward.unit;
  const int64_t columns = unit.of_worker != nullptr ? round_up(size.embed, 32) : stored;  // a unit has blocks of 32
  const bool project = grad_variance.has_value() && !z.has_value();
  const bool read = grad_weight.has_value() || project;
  Workspace<Real> work;
  const int64_t weight_panels = work.reserve(project ? size.channels * stored : 0);
  const int64_t weight_blocks = work.reserve(grad_features.has_value() ? padded * size.embed : 0);
  const int64_t shares = work.reserve(grad_weight.has_value() ? parts * padded * columns : 0);
  const int64_t tile_features = work.reserve(read ? threads * padded * kTile : 0);
  const int64_t grad_z = work.reserve(threads * kTile * stored);
  const int64_t by_channel = work.reserve(grad_features.has_value() ? threads * size.embed * kTile : 0);
  const int64_t tile_grads = work.reserve(grad_features.has_value() ? threads * kTile * kTile : 0);
  const int64_t unit_of_worker = unit.of_worker != nullptr ? unit.of_worker(size) : 0;
  const int64_t unit_of_blocks = work.reserve(unit.of_block != nullptr ? size.blocks * unit.of_block(size) : 0);
  const int64_t unit_of_workers = work.reserve(threads * unit_of_worker);
  work.allocate(weight);
  const ProjectionBackward<Real> task{size,
                                      images.data(),
                                      grad_features.has_value() ? grads.data() : nullptr,
                                      static_cast<const Real*>(weight.const_data_ptr()),
                                      static_cast<const Real*>(grad_peak.const_data_ptr()),
                                      static_cast<const int32_t*>(position.const_data_ptr()),
                                      pointer<const Real>(z),
                                      pointer<Real>(grad_weight),
                                      pointer<const Real>(grad_mean),
                                      pointer<const Real>(grad_variance),
                                      pointer<const Real>(mean),
                                      double(features.size(0)) * double(pixels),
                                      parts,
                                      work.at(weight_panels),
                                      work.at(weight_blocks),
                                      work.at(shares),
                                      work.at(unit_of_blocks)};
  share_out(size.blocks, [&](int64_t, int64_t block) { kernels.backward.prepare(task, block); });
  share_out(parts, [&](int64_t worker, int64_t part) {
    const ProjectionBackwardScratch<Real> scratch{
        work.at(tile_features + worker * padded * kTile), work.at(grad_z + worker * kTile * stored),
        work.at(by_channel + worker * size.embed * kTile), work.at(tile_grads + worker * kTile * kTile),
        work.at(unit_of_workers + worker * unit_of_worker)};
    const int64_t first = part * tiles / parts, end = (part + 1) * tiles / parts;
    for (int64_t tile = first; tile < end; ++tile)
      kernels.backward.tile(task, tile / per_image, tile % per_image, part, tile == first, scratch);
  });
  if (grad_weight.has_value())
    share_out(size.blocks, [&](int64_t, int64_t block) { kernels.backward.finish(task, block); });
}

void projection_backward(Tensor grad_peak, std::optional<Tensor> grad_mean, std::optional<Tensor> grad_variance,
                         Tensor features, Tensor weight, Tensor position, std::optional<Tensor> z,
                         std::optional<Tensor> mean, std::optional<Tensor> grad_features,
                         std::optional<Tensor> grad_weight) {
  const auto task = weight.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  task(grad_peak, grad_mean, grad_variance, features, weight, position, z, mean, grad_features, grad_weight);
}

}  // namespace difnet::cpu
