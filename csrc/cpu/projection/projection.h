// Ψ of a batch as the kernels see it: pointers, sizes, strides. Shared by the drivers (compiled once) and the kernels
// (compiled once per instruction set), so nothing here may contain code.
//
// z = W f is computed a tile of kTile pixels at a time, in tiles [panel][pixel][channel of the panel] that stay in the
// first-level cache, and never stored at the resolution of the features. Features are read kTile channels at a time.
#pragma once

#include "cpu/tile.h"
#include "field.h"

namespace difnet::cpu {

// An image (C, Z, H, W) of any dtype and strides (in elements).
struct Volume {
  void* data;
  int64_t channel_stride, stride[3];
  DType dtype;
};

// Adaptive pooling along one axis: window i of `windows` holds start[i] <= x < end[i]; start[windows] is `pixels`.
struct Axis {
  int64_t pixels, windows;
  const int64_t *start, *end;
};

// Where a pooled map (B, D, Z', H', W') has its elements.
struct PooledStrides {
  int64_t image, channel, axis[3];
};

struct ProjectionSizes {
  int64_t channels, embed;
  int64_t panels;  // that hold the embed channels
  int64_t blocks;  // of kTile that hold the feature channels
  Axis axis[3];
};

// Windows that are pooled together, and so share the z of the rows they have in common: [from, to) along each axis.
struct Band {
  int64_t image, from[3], to[3];
};

// Mean and sum of squared deviations, per channel, of the `count` pixels that belong to a band; all zero at first.
struct Moments {
  double count, *mean, *deviation;
};

template <typename Real>
struct ProjectionForward {
  ProjectionSizes size;
  const Volume* features;  // per image
  const Real* weight;
  Real* peak;
  int32_t* position;
  PooledStrides pooled;
  // workspace: W with the sign of each slope, so that the maximum is what is sought in every channel, in panels
  // [panel][feature channel][channel of the panel]
  Real *signed_weight, *sign;
  bool any_flat;  // some slope is 0: the first pixel of a window wins there
  Real* unit;     // per block of feature channels: what a matrix unit multiplies (unit.h); null without one
};

// The memory of one worker. A best is a value and, in the bits of the other Real, the index of its pixel.
template <typename Real>
struct ProjectionForwardScratch {
  Real *features, *z;
  Real *row_best, *row_index;    // [panel][window of the band along x][channel of the panel]
  Real *band_best, *band_index;  // the same for each row of windows of the band
  Real* unit;                    // the memory of a matrix unit
};

template <typename Real>
struct ProjectionBackward {
  ProjectionSizes size;
  const Volume *features, *grad_features;  // per image; grad_features null if it is not wanted
  const Real *weight, *grad_peak;          // grad_peak and position are [B][Z'][H'][W'][D]
  const int32_t* position;
  const Real* z;                                 // [B][Z][H][W][D] where every window is a pixel, else null
  Real* grad_weight;                             // (D, C), null if it is not wanted
  const Real *grad_mean, *grad_variance, *mean;  // each may be null
  double pixels;                                 // of the batch
  int64_t parts;                                 // whose shares of grad_weight are summed in the end
  // workspace
  Real* weight_panels;  // [panel][feature channel][channel of the panel], for z
  Real* weight_blocks;  // [block][embed channel][feature channel of the block], for grad_features
  Real* shares;         // of grad_weight: [part][panel][feature channel, padded to whole blocks][channel of the panel]
  Real* unit;           // as in the forward
};

template <typename Real>
struct ProjectionBackwardScratch {
  Real *features, *grad_z, *grad_z_by_channel, *grad_features;
  Real* unit;
};

// What kernels on a matrix unit need beside them, in numbers; null without one.
struct ProjectionUnit {
  int64_t (*of_block)(const ProjectionSizes&);  // of feature channels
  int64_t (*of_worker)(const ProjectionSizes&);
};

// `prepare` and `finish` are called for every block of feature channels, before and after all bands or tiles.
template <typename Real>
struct ProjectionForwardSteps {
  void (*prepare)(const ProjectionForward<Real>&, int64_t block);
  void (*pool)(const ProjectionForward<Real>&, const Band&, const ProjectionForwardScratch<Real>&, Moments*);
  ProjectionUnit unit = {};
};

template <typename Real>
struct ProjectionBackwardSteps {
  void (*prepare)(const ProjectionBackward<Real>&, int64_t block);
  void (*tile)(const ProjectionBackward<Real>&, int64_t image, int64_t tile, int64_t part, bool first_of_part,
               const ProjectionBackwardScratch<Real>&);
  void (*finish)(const ProjectionBackward<Real>&, int64_t block);
  ProjectionUnit unit = {};
};

// What an instruction set brings.
template <typename Real>
struct ProjectionKernels {
  int panel;
  ProjectionForwardSteps<Real> forward;
  ProjectionBackwardSteps<Real> backward;
};

// What an instruction set with a matrix unit brings, for fp32, bf16 and fp16 features.
struct ProjectionUnitKernels {
  const char* name;  // of the set
  ProjectionKernels<float> fp32, bf16, fp16;
};

}  // namespace difnet::cpu
