// How the columns of a row tile are cut into parts, and who adds them: the model of backends/triton/split.py, which
// says why. Both agree on every case (tests/cuda/test_plan.py), so both backends cut an image alike.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace difnet::cuda {

// `parts` of `part_tiles` column tiles, the last may be shorter; all parts of a row tile in one unit, or a unit each.
struct Split {
  int32_t parts, part_tiles, all_parts;
};

// row_tiles, columns: of one image; processors: multiprocessors of the card (0: no card, one part).
inline Split split_columns(int64_t batch, int64_t row_tiles, int64_t columns, int64_t processors, bool in_registers) {
  // in units of one column tile
  constexpr double kStart = 3.0, kRefill = 0.5, kCombine = 6.0, kPart = 0.25;
  constexpr int64_t kMaxParts = 16, kLeastTiles = 8, kBlocksPerProcessor = 2;
  const double slots = double(std::max<int64_t>(1, processors * kBlocksPerProcessor));
  const auto quotient_up = [](double a, double b) { return std::ceil(a / b); };
  const auto apart = [&](int64_t tiles, int64_t parts) {
    const double work =
        quotient_up(double(tiles * parts), slots) * (quotient_up(double(columns), double(parts)) + kStart);
    return work + (parts > 1 ? kCombine + kPart * double(parts) * std::max(1.0, double(tiles) / slots) : 0.0);
  };
  const auto together = [&](int64_t tiles, int64_t parts) {
    return quotient_up(double(tiles), slots) * (double(columns) + kRefill * double(parts - 1) + kStart);
  };
  const int64_t most = processors == 0 ? 1 : std::max<int64_t>(1, std::min(kMaxParts, columns / kLeastTiles));
  int64_t best = 1;
  for (int64_t parts = 2; parts <= most; ++parts)
    if (apart(row_tiles, parts) < apart(row_tiles, best)) best = parts;
  const int64_t part_tiles = (columns + best - 1) / best;
  const int64_t parts = (columns + part_tiles - 1) / part_tiles, tiles = batch * row_tiles;
  return {int32_t(parts), int32_t(part_tiles), int32_t(in_registers && together(tiles, parts) <= apart(tiles, parts))};
}

}  // namespace difnet::cuda
