// The columns of one part of a row tile, streamed through two stages of shared memory from the unit's own tile on, each
// when it is there.
#pragma once

#include "cuda/memory.h"

namespace difnet::cuda {

DIFNET_DEVICE bool is_ready(const uint32_t* counter) { return load_acquire(counter) >= kInputs; }
DIFNET_DEVICE void wait_until_ready(const uint32_t* counter) {
  wait_for(counter, kInputs, "a block waits for what a walk reads of a column tile", __LINE__);
}

// part() is the part, counter(row_tile) where to look whether a row tile is there; both are asked again for every tile,
// so that they need no registers. copy(tile, stage) begins to fill a stage, start() reads what the unit keeps of its own
// rows, add(tile, stage) uses a stage that is there.
template <int kTile, typename Part, typename Counter, typename Copy, typename Start, typename Add>
DIFNET_DEVICE void stream_columns(const auto& c, int row_tile, Part part, Counter counter, Copy copy, Start start,
                                  Add add) {
  constexpr int kTilesOfRows = kRows / kTile;  // column tiles in a row tile
  const auto begin = [&] { return part() * c.split.part_tiles; };
  const auto end = [&] {
    const int after = begin() + c.split.part_tiles;
    return after < c.column_tiles ? after : c.column_tiles;
  };
  // every thread looks whether some row tiles are there; where all are, nobody looks again
  bool mine = is_ready(counter(row_tile));
  for (int tile = begin() / kTilesOfRows + thread(); tile <= (end() - 1) / kTilesOfRows; tile += kThreads)
    mine = is_ready(counter(tile)) && mine;
  const bool all_ready = barrier_and(mine);
  int tile = row_tile * kTilesOfRows;
  if (tile < begin() || tile >= end()) tile = begin();
  if (!all_ready) {
    if (thread() == 0) {
      wait_until_ready(counter(row_tile));
      wait_until_ready(counter(tile / kTilesOfRows));
    }
    barrier();
  }
  int left = end() - begin();
  copy(tile, left % 2);
  start();
#pragma unroll 1
  for (; left > 0; --left) {
    const int next = tile + 1 < end() ? tile + 1 : begin();
    const bool more = left > 1;
    if (!all_ready && more && thread() == 0) wait_until_ready(counter(next / kTilesOfRows));
    wait_for_copies();
    barrier();  // this tile is here, the one before is done with, and the next one can be read
    if (more) copy(next, (left + 1) % 2);
    add(tile, left % 2);
    tile = next;
  }
}

}  // namespace difnet::cuda
