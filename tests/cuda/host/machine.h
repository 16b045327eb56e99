// The machine that stands in for a card: blocks that are all resident, warps of 32 fibers, and a scheduler that lets a
// random fiber run until it meets others. What a kernel may not do ends the run with a sentence that names file and
// line. A launch switches fibers a million times: what happens at each switch is plain, and a few words of memory.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"

namespace twin {

using Where = std::source_location;
constexpr int kLanes = 32;

TWIN_PLAIN inline bool same(const Where& one, const Where& other) {
  return __builtin_bit_cast(const void*, one) == __builtin_bit_cast(const void*, other) ||
         (one.line() == other.line() && one.column() == other.column());
}

// Everything random of a launch: a congruential sequence, of which the upper bits are good.
class Chance {
 public:
  explicit Chance(unsigned seed) : state_(seed) {}
  TWIN_PLAIN uint32_t operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state_ >> 32);
  }

 private:
  uint64_t state_;
};

// An asynchronous copy of 16 bytes that nobody has waited for yet.
struct Copy {
  void* to;
  const void* from;
  uint64_t kept[2];  // what `from` held when the copy was issued
  Where where;
};

// Threads that meet: the 32 of a warp in a collective instruction, those of a block in a barrier.
struct Meeting {
  const char* instruction = nullptr;
  Where where;
  int arrived = 0;
  unsigned generation = 0;
};

// What the lanes of a warp bring to a collective instruction, and what they find there.
struct alignas(64) Operands {
  uint32_t word[6][kLanes];
  float sum[2][kLanes][2];  // of mma: the accumulators of rows g and g + 8
};

struct Thread;

struct Warp {
  Thread* threads;                              // 32 of them
  uint32_t runnable = 0xffffffffu, asleep = 0;  // a bit for each lane; those asleep wait for a counter
  uint32_t next = 0;                            // the lane that will run, chosen ahead so that its stack can be fetched
  Meeting meeting;
  Operands operands[2];  // in turn, because some lanes bring the next ones before others have looked at these

  // Of the meeting that this lane goes to.
  TWIN_PLAIN Operands& next_operands() { return operands[meeting.generation % 2]; }
};

struct Block {
  Meeting meeting;
  char keys[2];
  bool all = true, result = false;  // of barrier_and
  Warp* warps;
  char* shared;
};

struct Thread {
  Fiber* fiber;
  Block* of_block;
  Warp* of_warp;
  int block, thread, lane;
  const char* waits_in = "nothing";  // the instruction it went to last
  Where where;
  bool done = false;
  Copy* copies = nullptr;  // under way, and room for them
  int under_way = 0, room = 0;
};

// Memory that asynchronous copies may read.
struct Memory {
  virtual bool holds(const char* at, size_t bytes) const = 0;

 protected:
  ~Memory() = default;
};

class Machine {
 public:
  struct Settings {
    int blocks, threads;
    size_t shared_bytes;
    const Memory* memory;  // null: any
    unsigned schedule;     // the seed of everything random
  };
  struct Result {
    std::string error;
    int64_t bank_conflicts = 0, instructions = 0;
    int64_t copied = 0, loaded = 0;  // bytes, by asynchronous copies and by ldmatrix
  };

  static inline Machine* now = nullptr;
  static inline Thread* me = nullptr;  // the one that runs
  static constexpr const char* kCounter = "a wait for a counter";

  template <typename Kernel>
  static Result run(const Settings& settings, Kernel kernel) {
    Machine machine(settings, &kernel, [](void* kernel) { (*static_cast<Kernel*>(kernel))(); });
    return machine.go();
  }

  static void make_fibers(int count) {
    std::vector<Fiber*> made;
    for (int n = 0; n < count; ++n) made.push_back(Fiber::take(&Machine::enter));
    for (Fiber* one : made) Fiber::keep(one);
  }

  TWIN_PLAIN int blocks() const { return settings_.blocks; }
  TWIN_PLAIN uint32_t chance() { return chance_(); }
  TWIN_PLAIN Result& result() { return result_; }

  // The run ends here; whoever still waits is left alone.
  [[noreturn]] __attribute__((format(printf, 3, 4))) void fail(const Where& where, const char* format, ...) {
    Unseen unseen;
    char text[400], whole[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(whole, sizeof whole, "%s:%d: block %d thread %d: %s", base_name(where), int(where.line()), me->block,
             me->thread, text);
    result_.error = whole;
    failed_ = true;
    switch_away();
    std::abort();
  }

  // All lanes of the warp arrive at one place of the source; the last one runs `act` for all of them.
  template <typename Act>
  TWIN_PLAIN void meet_warp(const char* instruction, const Where& where, Act act) {
    Warp& warp = *me->of_warp;
    meet(warp.meeting, kLanes, "warp", instruction, where, [&]() TWIN_PLAIN {
      act();
      warp.runnable = ~(1u << me->lane);
    });
  }

  // All threads of the block; true if `mine` was true for all.
  TWIN_PLAIN bool barrier(const char* instruction, const Where& where, bool mine) {
    Block& block = *me->of_block;
    char* key = &block.keys[block.meeting.generation % 2];
    block.all = block.all && mine;
    give(key);
    meet(block.meeting, settings_.threads, "block", instruction, where, [&]() TWIN_PLAIN {
      block.result = block.all;
      block.all = true;
      for (int w = 0; w < warps_of_block_; ++w) block.warps[w].runnable = ~0u;
      me->of_warp->runnable = ~(1u << me->lane);
    });
    take(key);
    return block.result;
  }

  // One time in eight others run before this thread goes on.
  TWIN_PLAIN void yield_at_random() {
    if (chance_() >> 29 != 0) return;
    me->of_warp->runnable |= 1u << me->lane;
    switch_away();
  }

  // Returns where it lies there.
  TWIN_PLAIN uint32_t check_shared(const void* pointer, size_t bytes, const Where& where) {
    const int64_t offset = static_cast<const char*>(pointer) - me->of_block->shared;
    if (offset < 0 || size_t(offset) + bytes > settings_.shared_bytes)
      fail(where, "%ld is outside the %zu bytes of shared memory", long(offset), settings_.shared_bytes);
    check_alignment(pointer, bytes, where);
    return uint32_t(offset);
  }
  TWIN_PLAIN void check_global(const void* pointer, size_t bytes, const Where& where) {
    if (settings_.memory != nullptr && !settings_.memory->holds(static_cast<const char*>(pointer), bytes))
      fail(where, "a copy reads outside the workspace");
    check_alignment(pointer, bytes, where);
  }

  TWIN_PLAIN void start_copy(void* to, const void* from, uint64_t first, uint64_t second, const Where& where) {
    if (me->under_way == me->room) {
      me->room = me->room * 2 + 16;
      me->copies = static_cast<Copy*>(realloc(me->copies, size_t(me->room) * sizeof(Copy)));
    }
    me->copies[me->under_way++] = {to, from, {first, second}, where};
    result_.copied += 16;
  }
  TWIN_PLAIN int copies_under_way() { return me->under_way; }
  // In the order in which they were issued; `left` are still there.
  TWIN_PLAIN Copy next_copy(int left) {
    const Copy next = me->copies[me->under_way - left];
    if (left == 1) me->under_way = 0;
    return next;
  }

  // It saw that a counter is not there yet: only a write of one can change that.
  TWIN_PLAIN void wait_for_a_write(const Where& where) {
    me->of_warp->asleep |= 1u << me->lane;
    wait(kCounter, where);
  }
  TWIN_PLAIN void wrote_a_counter() {
    for (int w = 0; w < settings_.blocks * warps_of_block_; ++w) {
      warps_[w].runnable |= warps_[w].asleep;
      warps_[w].asleep = 0;
    }
  }

 private:
  Machine(const Settings& settings, void* kernel, void (*call)(void*))
      : settings_(settings),
        warps_of_block_(settings.threads / kLanes),
        chance_(settings.schedule),
        kernel_(kernel),
        call_(call) {}

  static const char* base_name(const Where& where) {
    const char* slash = strrchr(where.file_name(), '/');
    return slash ? slash + 1 : where.file_name();
  }
  TWIN_PLAIN void check_alignment(const void* pointer, size_t bytes, const Where& where) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail(where, "an address is no multiple of %zu", bytes);
  }

  template <typename Act>
  TWIN_PLAIN void meet(Meeting& meeting, int count, const char* of, const char* instruction, const Where& where,
                       Act act) {
    ++result_.instructions;
    if (meeting.arrived == 0) {
      meeting.instruction = instruction;
      meeting.where = where;
    } else if (meeting.instruction != instruction || !same(meeting.where, where)) {
      fail(where, "divergence: %s here while others of its %s are in %s at %s:%d", instruction, of, meeting.instruction,
           base_name(meeting.where), int(meeting.where.line()));
    }
    if (++meeting.arrived == count) {
      meeting.arrived = 0;
      ++meeting.generation;
      act();
    } else {
      wait(instruction, where);
    }
  }
  TWIN_PLAIN void wait(const char* instruction, const Where& where) {
    me->waits_in = instruction;
    me->where = where;
    switch_away();
  }
  TWIN_PLAIN void switch_away() {
    Thread* const self = me;
    if (failed_ || !pick())
      self->fiber->switch_to(main_);
    else if (me != self)
      self->fiber->switch_to(*me->fiber);
    me = self;
  }

  // The next to run. A warp keeps its turn for a while, a block for longer: they run far ahead of others, and their
  // memory stays near.
  TWIN_PLAIN bool pick() {
    const uint32_t dice = chance_();
    if ((turn_->runnable == 0 || dice >> 28 == 0) && !take_turn(dice)) return false;
    const uint32_t lane = turn_->runnable >> turn_->next & 1u ? turn_->next : one_of(turn_->runnable, dice);
    turn_->runnable &= ~(1u << lane);
    me = turn_->threads + lane;
    turn_->next = one_of(turn_->runnable, dice >> 8);
    turn_->threads[turn_->next].fiber->fetch();
    return true;
  }
  // A lane of those, any if there is none.
  TWIN_PLAIN static uint32_t one_of(uint32_t those, uint32_t dice) {
    const uint32_t first = dice & 31u, turned = those >> first | those << (-first & 31u);
    return (first + uint32_t(__builtin_ctz(turned | 1u << 31))) & 31u;
  }
  TWIN_PLAIN bool take_turn(uint32_t dice) {
    const bool stays = (dice >> 5 & 7u) != 0;
    return (stays && look(me->of_block->warps, warps_of_block_)) || look(warps_, settings_.blocks * warps_of_block_);
  }
  TWIN_PLAIN bool look(Warp* warps, int count) {
    const uint32_t first = chance_() % uint32_t(count);
    for (int step = 0; step < count; ++step) {
      Warp* const one = warps + (first + uint32_t(step)) % uint32_t(count);
      if (one->runnable != 0) {
        turn_ = one;
        return true;
      }
    }
    return false;
  }

  Result go() {
    Unseen unseen;
    now = this;
    Fiber::main_ = &main_;
    const size_t all = size_t(settings_.blocks) * size_t(settings_.threads);
    std::vector<Thread> threads(all);
    std::vector<Warp> warps(all / kLanes);
    std::vector<Block> blocks(size_t(settings_.blocks));
    for (int b = 0; b < settings_.blocks; ++b) {
      Block& block = blocks[size_t(b)];
      block.warps = &warps[size_t(b * warps_of_block_)];
      // an allocation of its own, so that what lies beyond it is the address sanitizer's
      block.shared = static_cast<char*>(operator new[](settings_.shared_bytes, kAlignment));
      memset(block.shared, 0xff, settings_.shared_bytes);  // NaN
      for (int t = 0; t < settings_.threads; ++t) {
        Thread& thread = threads[size_t(b * settings_.threads + t)];
        thread.fiber = Fiber::take(&Machine::enter);
        thread.of_block = &block, thread.of_warp = block.warps + t / kLanes;
        thread.block = b, thread.thread = t, thread.lane = t % kLanes;
        if (thread.lane == 0) thread.of_warp->threads = &thread;
      }
    }
    turn_ = warps_ = warps.data(), me = threads.data();
    give(&begin_);  // a launch sees what came before it
    while (!failed_ && pick()) main_.switch_to(*me->fiber);
    take(&end_);  // the end of a launch orders all it did before what comes next
    if (!failed_) check_that_all_are_done(threads);
    for (Block& block : blocks) operator delete[](block.shared, kAlignment);
    for (Thread& thread : threads) free(thread.copies);
    if (result_.error.empty())  // else they were left in the middle of something
      for (Thread& thread : threads) Fiber::keep(thread.fiber);
    now = nullptr, me = nullptr;
    return result_;
  }

  static void enter() {
    Fiber::arrived(nullptr);
    while (true) {  // one launch after another
      begin_thread();
      now->call_(now->kernel_);
      end_thread();
    }
  }
  TWIN_PLAIN static void begin_thread() { twin::take(&now->begin_); }
  TWIN_PLAIN static void end_thread() {
    if (me->under_way != 0) now->fail(me->copies[0].where, "a thread ends before its copy of this line has landed");
    me->done = true;
    give(&now->end_);
    me->fiber->switch_to(now->main_);
  }

  void check_that_all_are_done(const std::vector<Thread>& threads) {
    int left = 0;
    const Thread* first = nullptr;
    for (const Thread& thread : threads)
      if (!thread.done) {
        ++left;
        // one that waits for its own block says more than one that waits for another's
        const bool for_a_block = strcmp(thread.waits_in, kCounter) != 0;
        if (first == nullptr || (for_a_block && strcmp(first->waits_in, kCounter) == 0)) first = &thread;
      }
    if (left == 0) return;
    char text[400];
    snprintf(text, sizeof text, "%s:%d: deadlock: block %d thread %d is in %s, and so wait %d threads in all",
             base_name(first->where), int(first->where.line()), first->block, first->thread, first->waits_in, left);
    result_.error = text;
  }

  static constexpr std::align_val_t kAlignment{128};

  const Settings settings_;
  const int warps_of_block_;
  Chance chance_;
  void* const kernel_;
  void (*const call_)(void*);
  Fiber main_;
  Warp* warps_ = nullptr;  // of all blocks
  Warp* turn_ = nullptr;
  bool failed_ = false;
  char begin_ = 0, end_ = 0;
  Result result_;
};

}  // namespace twin
