// Ψ3 and Ψ4 of a tile of pixels (backward_tile.h) with the products on a matrix unit. A tile with a number that the unit may
// not multiply is left to the vectors, block by block.
#pragma once

#include "cpu/projection/backward_tile.h"
#include "cpu/projection/unit.h"

namespace difnet::cpu::DIFNET_ISA {

// The share of a part of the batch in the gradient of a block of W: [feature channel][embed channel], turned where the
// channels of the features are innermost.
DIFNET_INLINE float* share_of_block(const ProjectionBackward<float>& task, int64_t part, int64_t block) {
  return task.shares + (part * task.size.blocks + block) * kTile * blocks(task.size.embed) * kBlock;
}
DIFNET_INLINE int64_t in_share(const ProjectionSizes& size, bool innermost, int64_t c, int64_t d) {
  return innermost ? d * kTile + c : c * blocks(size.embed) * kBlock + d;
}

template <const ProjectionScheme& scheme>
class UnitGradients {
 public:
  using Projection = UnitProjection<scheme, true>;

  static DIFNET_MEMBER int64_t places(const ProjectionSizes& size) {
    const int64_t D = blocks(size.embed);
    return Projection::places(size) + packed_places(parts_of_b(scheme.features_grad), D, kBlocks) +
           packed_places(parts_of_a(scheme.grad_weight), kBlocks, D);
  }
  // From the gradients of z of its pixels.
  DIFNET_MEMBER UnitGradients(const ProjectionBackward<float>& task, const ProjectionBackwardScratch<float>& work,
                              int64_t count)
      : task_(task), work_(work), vectors_(task, work, count), count_(count) {
    constexpr int P = kNR<float>;
    const ProjectionSizes& size = task.size;
    const int64_t D = blocks(size.embed), stored = size.panels * P;
    uint32_t* at = reinterpret_cast<uint32_t*>(work.unit + Projection::places(size));
    by_embed_ = packed_at(at, parts_of_b(scheme.features_grad), D, kBlocks);
    by_pixel_ = packed_at(at, parts_of_a(scheme.grad_weight), kBlocks, D);
    const auto over_pixels = [&](int64_t n, int64_t d) {
      if (n >= count || d >= stored) return Vec<float>{};
      return load<Vec<float>>(work.grad_z + (d / P * kTile + n) * P + d % P);
    };
    Ranges ranges;
    for (int64_t d = 0; d < stored; d += kWidth<float>)
      for (int64_t n = 0; n < count; ++n) ranges.add(over_pixels(n, d));
    grad_ = ranges.all();
    if (task.grad_weight != nullptr) pack<parts_of_b(scheme.features_grad)>(by_embed_, D, over_pixels);
    if (task.grad_features != nullptr) {
      for (int64_t d = 0; d < size.embed; ++d)
        for (int64_t n = count; n < kTile; ++n) work.grad_z_by_channel[d * kTile + n] = 0;
      pack<parts_of_a(scheme.grad_weight)>(by_pixel_, kBlocks, [&](int64_t d, int64_t n) {
        return d < size.embed ? load<Vec<float>>(work.grad_z_by_channel + d * kTile + n) : Vec<float>{};
      });
    }
    Unit::begin(callers_unit_);
  }
  ~UnitGradients() { Unit::end(callers_unit_); }
  UnitGradients(const UnitGradients&) = delete;
  UnitGradients& operator=(const UnitGradients&) = delete;

  // (Ψ4)
  void to_weight(bool innermost, int64_t block, int64_t part, bool first, float* features) const {
    const int64_t D = blocks(task_.size.embed);
    clear_rest(innermost, count_, block_channels(task_.size, block), features);
    Ranges ranges;
    for (int64_t x = 0; x < kTile * kTile; x += kWidth<float>) ranges.add(load<Vec<float>>(features + x));
    float *share = share_of_block(task_, part, block), *to = first ? share : fresh();
    if (in_range_of_unit(ranges.all(), grad_)) {
      const TileOperand f =
          pack_tile<parts_of_a(scheme.features_grad)>(!innermost, features, reinterpret_cast<uint32_t*>(work_.unit));
      if (innermost)
        multiply_on_unit(operand_a(by_embed_), f, D, kBlocks, scheme.grad_features, to, kTile);
      else
        multiply_on_unit(f, operand_b(by_embed_), kBlocks, D, scheme.features_grad, to, D * kBlock);
    } else {
      by_vectors(innermost, features, to);
    }
    if (!first) add_numbers(to, kTile * D * kBlock, share);
  }

  // (Ψ3)
  void to_features(bool innermost, int64_t block) const {
    const WeightOfBlock weight(scheme, task_.size, true, task_.unit, block);
    if (!in_range_of_unit(grad_, weight.numbers())) return vectors_.to_features(innermost, block);
    const int64_t pixels = blocks(count_);
    if (innermost)
      multiply_on_unit(operand_a(by_pixel_), operand_b(weight.W_back), pixels, kBlocks, scheme.grad_weight,
                       work_.grad_features, kTile);
    else
      multiply_on_unit(operand_a(weight.W_back), operand_b(by_pixel_), kBlocks, pixels, scheme.weight_grad,
                       work_.grad_features, kTile);
  }

 private:
  DIFNET_MEMBER float* fresh() const {
    return work_.unit + Projection::places(task_.size) - kTile * blocks(task_.size.embed) * kBlock;
  }
  __attribute__((noinline)) void by_vectors(bool innermost, const float* features, float* to) const {
    constexpr int P = kNR<float>;
    const ProjectionSizes& size = task_.size;
    alignas(64) float grad[kMR * P];
    for (int64_t panel = 0; panel < size.panels; ++panel)
      for (int64_t c = 0; c < kTile; c += kMR) {
        const float* grad_z = work_.grad_z + panel * kTile * P;
        if (innermost)
          multiply<1, kTile, P, P>(features + c, grad_z, count_, false, grad);
        else
          multiply<kTile, 1, P, P>(features + c * kTile, grad_z, count_, false, grad);
        for (int64_t x = 0; x < kMR * P; ++x) to[in_share(size, innermost, c + x / P, panel * P + x % P)] = grad[x];
      }
  }

  const ProjectionBackward<float>& task_;
  const ProjectionBackwardScratch<float>& work_;
  const VectorGradients<float> vectors_;
  const int64_t count_;
  Packed by_embed_;  // [embed channel][sum over pixels]
  Packed by_pixel_;  // [pixel][sum over embed channels]
  Range grad_;
  alignas(64) unsigned char callers_unit_[64];
};

template <const ProjectionScheme& scheme>
void projection_unit_backward_prepare(const ProjectionBackward<float>& task, int64_t block) {
  projection_backward_prepare(task, block);
  const ProjectionSizes& size = task.size;
  const WeightOfBlock weight(scheme, size, true, task.unit, block);
  if (task.grad_variance != nullptr && task.z == nullptr)
    weight.template fill<parts_of_b(scheme.features_weight)>(size, task.weight_panels, block);
  if (task.grad_features == nullptr) return;
  const float* blocks_of_weight = task.weight_blocks + block * size.embed * kTile;
  const auto read = [&](int64_t d, int64_t c) {
    return d < size.embed ? load<Vec<float>>(blocks_of_weight + d * kTile + c) : Vec<float>{};
  };
  Ranges ranges;
  for (int64_t x = 0; x < size.embed * kTile; x += kWidth<float>) ranges.add(load<Vec<float>>(blocks_of_weight + x));
  weight.set_numbers(ranges.all());
  pack<parts_of_b(scheme.grad_weight)>(weight.W_back, kBlocks, read);
}

// (Ψ4) the shares of one block of channels summed, in order of the parts.
template <const ProjectionScheme& scheme>
void projection_unit_backward_finish(const ProjectionBackward<float>& task, int64_t block) {
  const ProjectionSizes& size = task.size;
  const bool innermost = channels_innermost(task.features[0]);
  for (int64_t d = 0; d < size.embed; ++d)
    for (int64_t c = 0; c < block_channels(size, block); ++c) {
      double sum = 0;
      for (int64_t part = 0; part < task.parts; ++part)
        sum += double(share_of_block(task, part, block)[in_share(size, innermost, c, d)]);
      task.grad_weight[d * size.channels + block * kTile + c] = float(sum);
    }
}

}  // namespace difnet::cpu::DIFNET_ISA
