// Schedule of tile pairs: every unordered pair of tiles once, as a round-robin tournament.
//
// In a round no two pairs share a tile, so pairs of a round run at the same time without locks, and a tile meets its
// partners in one fixed order whatever the number of threads: sums are the same bits. Steps are handed out as tickets
// in tournament order; a step waits until its tiles have finished their round before, not until everybody has. The
// oldest unfinished step never waits (its predecessors have older tickets), so any number of threads makes progress,
// one too.
//
// Beside busy processes a worker may lose its core in the middle of a step, for as long as a thousand steps take. So a
// step is computed in scratch memory and then committed by whoever claims it first: a worker that has waited for
// several times the length of a step computes what it waits for itself. What it computes is the same bits, whoever
// commits; what comes too late is dropped.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "cpu/float_mode.h"
#include "cpu/walk/walk.h"

namespace difnet::cpu {

class Tournament {
 public:
  Tournament(int64_t images, int64_t tiles)
      : images_(images),
        tiles_(tiles),
        players_(tiles + tiles % 2),  // an odd number of tiles gets one that is never there
        pairs_(players_ / 2),
        steps_(players_ + players_ + (players_ - 1) * pairs_ + players_),
        states_(new State[images * players_]) {}

  // The most threads that can be of use; each works with a scratch memory of its own.
  int64_t workers() const { return std::min<int64_t>(torch::stable::get_num_threads(), images_ * pairs_); }

  // walks[image] is the walk of each image, scratch[worker] the memory of each worker; steps as in walk.h.
  template <typename Walk, typename Scratch>
  void play(const Walk* walks, const WalkSteps<Walk, Scratch>& steps, Scratch* scratch) {
    torch::stable::parallel_for(0, workers(), 1, [&](int64_t worker, int64_t) {
      const FloatMode mode;
      Worker<Walk, Scratch> self{walks, steps, scratch[worker]};
      if (steps.unit.begin != nullptr) steps.unit.begin(scratch[worker]);
      for (int64_t ticket; (ticket = next_.fetch_add(1, std::memory_order_relaxed)) < images_ * steps_;)
        step(self, ticket / steps_, ticket % steps_);
      if (steps.unit.end != nullptr) steps.unit.end(scratch[worker]);
    });
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kTimedEvery = 8;

  // Of a tile: how many of its steps are done (packing, its diagonal, then a round each), and which of those whose
  // first tile it is have been claimed for committing.
  struct State {
    std::atomic<int64_t> done{0}, claimed{0};
  };

  template <typename Walk, typename Scratch>
  struct Worker {
    const Walk* walks;
    const WalkSteps<Walk, Scratch>& steps;
    Scratch& scratch;
    int64_t computed = 0;
    Clock::duration step_time = std::chrono::microseconds(20);  // of a step that it computed lately
  };

  State& state(int64_t image, int64_t tile) const { return states_[image * players_ + tile]; }

  template <typename Walk, typename Scratch>
  void step(Worker<Walk, Scratch>& self, int64_t image, int64_t number) {
    if (number < players_) {
      if (number < tiles_) self.steps.prologue(self.walks[image], number);
      state(image, number).done.store(1, std::memory_order_release);
      return;
    }
    if ((number -= players_) < players_) return multiply(self, image, number, number, 1);
    number -= players_;
    const int64_t round = number / pairs_;
    if (round < players_ - 1) {
      const auto [a, b] = pair(round, number % pairs_);
      return multiply(self, image, a, b, 2 + round);
    }
    const int64_t tile = number - (players_ - 1) * pairs_;
    if (tile >= tiles_) return;
    wait(self, image, tile, players_ + 1);
    self.steps.epilogue(self.walks[image], tile);
  }

  // The circle method: the last player stays, the others turn one place each round. The smaller tile comes first, so
  // that a pair is always computed the same way round.
  std::pair<int64_t, int64_t> pair(int64_t round, int64_t number) const {
    const int64_t ring = players_ - 1;
    const int64_t a = number == 0 ? ring : (round + number) % ring;
    const int64_t b = number == 0 ? round : (round - number + ring) % ring;
    return {std::min(a, b), std::max(a, b)};
  }

  // Whom a tile meets in a round.
  int64_t partner(int64_t round, int64_t tile) const {
    const int64_t ring = players_ - 1;
    if (tile == ring) return round;
    const int64_t other = (2 * round - tile + 2 * ring) % ring;
    return other == tile ? ring : other;
  }

  // Step number `done` of tiles a and b, which both have finished those before it, or will.
  template <typename Walk, typename Scratch>
  void multiply(Worker<Walk, Scratch>& self, int64_t image, int64_t a, int64_t b, int64_t done) {
    wait(self, image, a, done);
    wait(self, image, b, done);
    try_multiply(self, image, a, b, done);
  }

  // Computes the step and commits it, unless somebody else does; whether it did.
  template <typename Walk, typename Scratch>
  bool try_multiply(Worker<Walk, Scratch>& self, int64_t image, int64_t a, int64_t b, int64_t done) {
    State &first = state(image, a), &second = state(image, b);
    if (first.done.load(std::memory_order_acquire) != done || second.done.load(std::memory_order_acquire) != done)
      return false;
    if (first.claimed.load(std::memory_order_relaxed) > done) return false;
    const bool there = b < tiles_;  // b is the larger one
    if (there) {
      const bool timed = self.computed++ % kTimedEvery == 0;
      const Clock::time_point start = timed ? Clock::now() : Clock::time_point();
      self.steps.multiply(self.walks[image], a, b, self.scratch);
      if (timed) self.step_time = Clock::now() - start;
    }
    int64_t claimed = first.claimed.load(std::memory_order_relaxed);
    if (claimed > done || !first.claimed.compare_exchange_strong(claimed, done + 1, std::memory_order_acq_rel))
      return false;
    if (there) self.steps.commit(self.walks[image], a, b, self.scratch);
    first.done.store(done + 1, std::memory_order_release);
    if (b != a) second.done.store(done + 1, std::memory_order_release);
    return true;
  }

  // Until `done` steps of the tile are done. Whoever waits too long makes the step that holds it up. Only who cannot do
  // that yields: beside busy processes a core that is given away comes back after thousands of steps.
  template <typename Walk, typename Scratch>
  void wait(Worker<Walk, Scratch>& self, int64_t image, int64_t tile, int64_t done) {
    constexpr int kSpins = 64, kPatience = 3;
    const State& awaited = state(image, tile);
    const auto arrived = [&] { return awaited.done.load(std::memory_order_acquire) >= done; };
    for (int spins = 0; spins < kSpins; ++spins)
      if (arrived()) return;
    const Clock::time_point patience = Clock::now() + kPatience * self.step_time;
    while (Clock::now() < patience)
      for (int spins = 0; spins < kSpins; ++spins)
        if (arrived()) return;
    while (!arrived())
      if (!help(self, image, tile)) std::this_thread::yield();
  }

  // Makes the next step of the tile, or of the one that this step waits for; whether there was something to do.
  template <typename Walk, typename Scratch>
  bool help(Worker<Walk, Scratch>& self, int64_t image, int64_t tile) {
    for (;;) {
      const int64_t done = state(image, tile).done.load(std::memory_order_acquire);
      if (done == 0 || done > players_) return false;  // being packed, or finished
      if (done == 1) return try_multiply(self, image, tile, tile, done);
      const int64_t other = partner(done - 2, tile);
      if (state(image, other).done.load(std::memory_order_acquire) >= done)
        return try_multiply(self, image, std::min(tile, other), std::max(tile, other), done);
      tile = other;
    }
  }

  const int64_t images_, tiles_, players_, pairs_, steps_;
  std::unique_ptr<State[]> states_;
  std::atomic<int64_t> next_{0};
};

}  // namespace difnet::cpu
