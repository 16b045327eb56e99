// One walk backwards (B3–B6, B8): a unit owns 64 rows of one image, streams one part of the columns (or all parts in
// turn) and writes only its own rows.
#pragma once

#include "cuda/walk/backward_finish.h"
#include "cuda/walk/backward_tile.h"
#include "cuda/walk/columns.h"

namespace difnet::cuda {

template <typename With>
struct WalkBackward : BackwardTile<With> {
  using Base = BackwardTile<With>;
  using Base::c, Base::memory, Base::t, Base::image, Base::row_tile, Base::tile_of_all;
  using Base::copy_stage, Base::load_own, Base::add_tile;
  using Base::kTile;
  using typename Base::Numbers, typename Base::Own;
  static constexpr int kFours = part_fours(With::kInstance);

  // ---- one part of the columns --------------------------------------------------------------------------------------
  DIFNET_DEVICE void sum_part(Numbers& sums) const {
    Own own;
    const auto copy = [&](int tile, int stage) { copy_stage(tile, memory.stream.stage[stage]); };
    const auto start = [&] {
      load_own(own);
      sums.for_each_four([](float (&x)[4], int) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = 0.0f;
      });
    };
    const auto add = [&](int tile, int stage) { add_tile(sums, own, tile, memory.stream.stage[stage]); };
    const auto part = [&] { return memory.unit.part; };
    const auto counter = [&](int tile) { return ready(c, t(), image(), tile); };
    stream_columns<kTile>(c, row_tile(), part, counter, copy, start, add);
    barrier();  // P_ii and A_ii are there
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums.own[half] = memory.own[warp() * 16 + lane() / 4 + half * 8];
      sums.itself[half] = memory.itself[warp() * 16 + lane() / 4 + half * 8];
    }
  }

  // ---- parts --------------------------------------------------------------------------------------------------------
  DIFNET_DEVICE Four* place_of(int64_t part) const {
    return reinterpret_cast<Four*>(c.part) + part * kFours * kThreads + thread();
  }
  DIFNET_DEVICE static void leave_sums(Numbers& sums, Four* at) {
    sums.for_each_four([&](float (&x)[4], int n) { at[n * kThreads] = {x[0], x[1], x[2], x[3]}; });
  }

  // Leaves the sums of one part; true for the block that comes last, which then has those of all parts, in their order.
  DIFNET_DEVICE bool meet(Numbers& sums) const {
    const int64_t first = tile_of_all() * c.split.parts;
    leave_sums(sums, place_of(first + memory.unit.part));
    barrier();
    if (thread() == 0) memory.before = add_acquire_release(arrived(c, image(), row_tile()), 1);
    barrier();
    if (memory.before != uint32_t(c.split.parts - 1)) return false;
    if (thread() == 0) *arrived(c, image(), row_tile()) = 0;  // for the next walk
    sums.for_each_four([&](float (&x)[4], int n) {
      const Four* from = place_of(first) + n * kThreads;
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = from->x[e];
#pragma unroll 1
      for (int other = 1; other < c.split.parts; ++other) {
        from += kFours * kThreads;
        const Four more = *from;
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] += more.x[e];
      }
    });
    return true;
  }

  // All parts in turn, or one of them. In turn the sums so far lie in memory, which only this thread reads.
  DIFNET_DEVICE void run() const {
    Numbers sums;
    while (true) {
      sum_part(sums);
      if (!c.split.all_parts || c.split.parts == 1) break;
      Four* so_far = place_of(tile_of_all());
      if (memory.unit.part > 0)
        sums.for_each_four([&](float (&x)[4], int n) {
          const Four before = so_far[n * kThreads];
#pragma unroll
          for (int e = 0; e < 4; ++e) x[e] = before.x[e] + x[e];
        });
      if (memory.unit.part + 1 == c.split.parts) break;
      leave_sums(sums, so_far);
      barrier();
      if (thread() == 0) ++memory.unit.part;
      barrier();
    }
    if (c.split.all_parts || meet(sums)) BackwardFinish<With>{c, memory}.finish(sums);
  }
};

}  // namespace difnet::cuda
