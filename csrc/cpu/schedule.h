// Schedule of tile pairs: every unordered pair of tiles once, as a round-robin tournament.
//
// In a round no two pairs share a tile, so pairs of a round run at the same time without locks, and a tile meets its
// partners in one fixed order whatever the number of threads: sums are the same bits. Steps are handed out as tickets
// in tournament order; a step waits until its tiles have finished their round before, not until everybody has. The
// oldest unfinished step never waits (its predecessors have older tickets), so any number of threads makes progress,
// one too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "cpu/walk/walk.h"

namespace difnet::cpu {

class Tournament {
 public:
  Tournament(int64_t images, int64_t tiles)
      : images_(images),
        tiles_(tiles),
        players_(tiles + tiles % 2),  // an odd number of tiles gets one that is never there
        pairs_(players_ / 2),
        steps_(players_ + (players_ - 1) * pairs_ + players_),
        rounds_done_(new std::atomic<int64_t>[images * players_]) {
    for (int64_t x = 0; x < images * players_; ++x) rounds_done_[x].store(0, std::memory_order_relaxed);
  }

  // walks[image] is the walk of each image; steps as in walk.h.
  template <typename Walk>
  void play(const Walk* walks, const WalkSteps<Walk>& steps) {
    const int64_t useful = std::min<int64_t>(torch::stable::get_num_threads(), images_ * pairs_);
    torch::stable::parallel_for(0, useful, 1, [&](int64_t, int64_t) {
      for (int64_t ticket; (ticket = next_.fetch_add(1, std::memory_order_relaxed)) < images_ * steps_;)
        step(walks, steps, ticket / steps_, ticket % steps_);
    });
  }

 private:
  template <typename Walk>
  void step(const Walk* walks, const WalkSteps<Walk>& steps, int64_t image, int64_t number) {
    if (number < players_) {
      if (number < tiles_) steps.prologue(walks[image], number);
      finish(image, number, 1);
      return;
    }
    number -= players_;
    const int64_t round = number / pairs_;
    if (round < players_ - 1) {
      const auto [a, b] = pair(round, number % pairs_);
      wait(image, a, 1 + round);
      wait(image, b, 1 + round);
      if (a < tiles_ && b < tiles_) steps.tiles(walks[image], a, b);
      finish(image, a, 2 + round);
      finish(image, b, 2 + round);
      return;
    }
    const int64_t tile = number - (players_ - 1) * pairs_;
    wait(image, tile, players_);
    if (tile < tiles_) steps.epilogue(walks[image], tile);
  }

  // The circle method: the last player stays, the others turn one place each round. The smaller tile comes first, so
  // that a pair is always computed the same way round.
  std::pair<int64_t, int64_t> pair(int64_t round, int64_t number) const {
    const int64_t ring = players_ - 1;
    const int64_t a = number == 0 ? ring : (round + number) % ring;
    const int64_t b = number == 0 ? round : (round - number + ring) % ring;
    return {std::min(a, b), std::max(a, b)};
  }

  void wait(int64_t image, int64_t tile, int64_t rounds) const {
    for (int spins = 0; rounds_done_[image * players_ + tile].load(std::memory_order_acquire) < rounds; ++spins)
      if (spins > 64) std::this_thread::yield();
  }

  void finish(int64_t image, int64_t tile, int64_t rounds) {
    rounds_done_[image * players_ + tile].store(rounds, std::memory_order_release);
  }

  const int64_t images_, tiles_, players_, pairs_, steps_;
  std::unique_ptr<std::atomic<int64_t>[]> rounds_done_;
  std::atomic<int64_t> next_{0};
};

}  // namespace difnet::cpu
