// ∂z of a tile of pixels (Ψ2), and the counters of a launch of Ψ's backward.
//
// Each pixel gathers from the windows that contain it, in their order, where their position names it. z, which the
// statistics need, is projected again unless it is given.
#pragma once

#include "cuda/projection/pool.h"

namespace difnet::cuda {

// finished blocks, units of W, ∂z of a round, uses of a round, parts of (round, chunk), rounds of a chunk
DIFNET_DEVICE uint32_t* prepared(const ProjectionBackward& c) { return c.counters + 1; }
DIFNET_DEVICE uint32_t* made(const ProjectionBackward& c, int round) { return c.counters + 2 + round; }
DIFNET_DEVICE uint32_t* used(const ProjectionBackward& c, int round) { return made(c, c.rounds + round); }
DIFNET_DEVICE uint32_t* parts_made(const ProjectionBackward& c, int round, int chunk) {
  return used(c, c.rounds) + int64_t(round) * c.chunks + chunk;
}
DIFNET_DEVICE uint32_t* rounds_made(const ProjectionBackward& c, int chunk) { return parts_made(c, c.rounds, chunk); }

// ∂z of a tile of the round, [pixels of a tile][kEmbed].
template <int kEmbed>
DIFNET_DEVICE float* gradient_of(const ProjectionBackward& c, int round, int tile) {
  const int64_t place = int64_t(round % kSlots) * c.round_tiles + tile;
  return c.pixel_gradient + place * (ProjectionMemory<1, kEmbed>::kPixels * kEmbed);
}

DIFNET_DEVICE int pixels_of(const auto& c) {
  const auto& of = c.psi.windows.pixels;
  return of[0] * of[1] * of[2];
}

// (Ψ2, first part) Σ grad_peak over the windows of a pixel that it won. window[axis] is the range of nodes.
DIFNET_DEVICE float chosen_gradient(const ProjectionBackward& c, const Window (&window)[3], int image, int d,
                                    int pixel) {
  const Volume &grad = c.grad_peak, &position = c.position;
  const auto* from = static_cast<const float*>(grad.data) + image * grad.batch_stride + d * grad.channel_stride;
  const auto* which =
      static_cast<const int32_t*>(position.data) + image * position.batch_stride + d * position.channel_stride;
  float sum = 0.0f;
#pragma unroll 1
  for (int z = window[0].start; z < window[0].start + window[0].wide; ++z)
#pragma unroll 1
    for (int y = window[1].start; y < window[1].start + window[1].wide; ++y)
#pragma unroll 1
      for (int x = window[2].start; x < window[2].start + window[2].wide; ++x) {
        const int64_t at = z * position.stride[0] + y * position.stride[1] + x * position.stride[2];
        if (which[at] == pixel) sum += from[z * grad.stride[0] + y * grad.stride[1] + x * grad.stride[2]];
      }
  return sum;
}

// (Ψ2) of a tile; zero past the last pixel and the last tile.
template <int kHalves, int kEmbed>
DIFNET_DEVICE void pixel_gradient(const ProjectionBackward& c, ProjectionMemory<kHalves, kEmbed>& memory, int round,
                                  int tile) {
  using Tile = ProjectionTile<kHalves, kEmbed>;
  constexpr int kPixels = Tile::kPixels;
  const int64_t number = int64_t(round) * c.round_tiles + tile;
  const bool is_there = number < int64_t(c.images) * c.tiles,
             again = is_there && c.grad_variance != nullptr && c.z.data == nullptr;
  const int image = is_there ? int(number / c.tiles) : 0, first = is_there ? int(number % c.tiles) * kPixels : 0;
  const auto& sizes = c.psi.windows.pixels;
  if (thread() < kPixels) {
    const int last = pixels_of(c) - 1;
    int rest = first + thread() < last ? first + thread() : last;
#pragma unroll 1
    for (int axis = 2; axis >= 0; --axis) {  // the windows that contain a pixel: a window over the nodes
      const int n = sizes[axis], m = c.psi.windows.nodes[axis], at = rest % n, start = window_begin(at, m, n);
      rest /= n;
      memory.window[axis][thread()] = {start, window_end(at, m, n) - start, 0};
    }
  }
  if (again) {
    Tile made(c.psi, memory);
    made.run(
        1,
        [&](int) {
          const int last = pixels_of(c) - 1, pixel = first + Tile::pixel() < last ? first + Tile::pixel() : last;
          return Spot{image * c.psi.features.batch_stride + place_in(c.psi.features, sizes, pixel), pixel, false};
        },
        [](int, int) {});
    barrier();
    made.leave_rows(memory.rows.z);
  }
  barrier();
  float* to = gradient_of<kEmbed>(c, round, tile);
#pragma unroll 1
  for (int at = thread(); at < kPixels * kEmbed; at += kThreads) {
    const int row = at / kEmbed, d = at % kEmbed, pixel = first + row;
    float sum = 0.0f;
    if (is_there && pixel < pixels_of(c) && d < c.psi.embed) {
      const Window window[3] = {memory.window[0][row], memory.window[1][row], memory.window[2][row]};
      sum = chosen_gradient(c, window, image, d, pixel);
      float more = c.grad_mean != nullptr ? c.grad_mean[d] * c.share : 0.0f;
      if (c.grad_variance != nullptr) {
        const float z =
            again ? memory.rows.z[row * (kEmbed + 1) + d]
                  : static_cast<const float*>(
                        c.z.data)[image * c.z.batch_stride + d * c.z.channel_stride + place_in(c.z, sizes, pixel)];
        more += (z - c.mean[d]) * (2.0f * c.share * c.grad_variance[d]);
      }
      sum += more;  // (Ψ2, second part)
    }
    to[at] = sum;
  }
}

}  // namespace difnet::cuda
