// The machine that stands in for a card: blocks that are all resident, warps of 32 fibers, and a scheduler that lets a
// random fiber run until it meets others. What a kernel may not do ends the run with a sentence that names file and
// line.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"

namespace twin {

using Where = std::source_location;
constexpr int kLanes = 32;

struct Copy {
  void* to;
  const void* from;
  uint64_t kept[2];  // what `from` held when the copy was issued
  Where where;
};

struct Thread {
  Thread(void (*body)(), int block, int thread) : fiber(Fiber::take(body)), block(block), thread(thread) {}
  std::unique_ptr<Fiber> fiber;
  int block, thread;
  const char* waits_in = nullptr;  // the instruction, null for a thread that can run
  Where where;
  bool done = false;
  std::vector<Copy> copies;
};

// Threads that meet: the 32 of a warp in a collective instruction, those of a block in a barrier.
struct Meeting {
  const char* instruction = nullptr;
  Where where;
  int arrived = 0;
  unsigned generation = 0;
  char keys[2];
  bool all = true;  // of barrier_and
  bool result = false;
};

struct Warp {
  Meeting meeting;
  uint32_t in[kLanes][12];
  uint32_t out[kLanes][4];
};

struct Block {
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<Thread*> runnable;
  char* shared = nullptr;

  static constexpr std::align_val_t kAlignment{128};
  Block() = default;
  Block(const Block&) = delete;
  ~Block() { operator delete[](shared, kAlignment); }
};

class Machine {
 public:
  struct Settings {
    int blocks, threads;
    size_t shared_bytes;
    std::function<bool(const void*, size_t)> holds;  // what asynchronous copies may read
    unsigned schedule;                               // the seed of everything random
  };
  TWIN_PLAIN void check_alignment(const void* pointer, size_t bytes, const Where& where) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail(where, "an address is no multiple of %zu", bytes);
  }

  struct Result {
    std::string error;
    int64_t bank_conflicts = 0, instructions = 0;
    int64_t copied = 0, loaded = 0;  // bytes, by asynchronous copies and by ldmatrix
  };

  static inline Machine* now = nullptr;
  static constexpr const char* kCounter = "a wait for a counter";

  template <typename Kernel>
  static Result run(const Settings& settings, Kernel kernel) {
    Machine machine(settings, kernel);
    return machine.go();
  }

  TWIN_UNSEEN static int block_of_thread() { return now->running_->block; }
  TWIN_UNSEEN static int number_of_blocks() { return now->settings_.blocks; }
  TWIN_UNSEEN static int thread_of_block() { return now->running_->thread; }

  TWIN_PLAIN Thread& me() { return *running_; }
  TWIN_PLAIN Block& block() { return blocks_[size_t(running_->block)]; }
  TWIN_PLAIN Warp& warp() { return block().warps[size_t(running_->thread / kLanes)]; }
  TWIN_PLAIN uint32_t chance() { return uint32_t(chance_()); }
  Result& result() { return result_; }

  // The run ends here; whoever still waits is left alone.
  [[noreturn]] __attribute__((format(printf, 3, 4))) void fail(const Where& where, const char* format, ...) {
    Unseen unseen;
    char text[400], whole[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(whole, sizeof whole, "%s:%d: block %d thread %d: %s", base_name(where), int(where.line()), running_->block,
             running_->thread, text);
    result_.error = whole;
    failed_ = true;
    leave_for_good();
  }

  // All `count` threads of `meeting` arrive at one place of the source; the last one runs `act` for all of them. The
  // caller is unseen.
  template <typename Act>
  TWIN_PLAIN void meet(Meeting& meeting, int count, const char* instruction, const Where& where, bool orders_memory,
                       Act act) {
    ++result_.instructions;
    const unsigned generation = meeting.generation;
    if (meeting.arrived == 0) {
      meeting.instruction = instruction;
      meeting.where = where;
    } else if (meeting.instruction != instruction || meeting.where.line() != where.line() ||
               meeting.where.column() != where.column()) {
      fail(where, "divergence: %s here while others of its %s are in %s at %s:%d", instruction,
           count == kLanes && &meeting != &block().meeting ? "warp" : "block", meeting.instruction,
           base_name(meeting.where), int(meeting.where.line()));
    }
    if (orders_memory) give(&meeting.keys[generation % 2]);
    if (++meeting.arrived == count) {
      meeting.arrived = 0;
      ++meeting.generation;
      act();
      wake(meeting, count);
    } else {
      wait(instruction, where);
    }
    if (orders_memory) take(&meeting.keys[generation % 2]);
  }

  // All threads of the block; true if `mine` was true for all.
  TWIN_PLAIN bool barrier(const char* instruction, const Where& where, bool mine) {
    Unseen unseen;
    Meeting& meeting = block().meeting;
    meeting.all = meeting.all && mine;
    meet(meeting, settings_.threads, instruction, where, true, [&]() TWIN_PLAIN {
      meeting.result = meeting.all;
      meeting.all = true;
    });
    return meeting.result;
  }

  // One time in eight others run before this thread goes on.
  TWIN_PLAIN void yield_at_random() {
    Unseen unseen;
    if (chance_() % 8 != 0) return;
    block().runnable.push_back(running_);
    switch_away();
  }

  TWIN_PLAIN void check_shared(const void* pointer, size_t bytes, const Where& where) {
    Unseen unseen;
    const char* at = static_cast<const char*>(pointer);
    if (at < block().shared || at + bytes > block().shared + settings_.shared_bytes)
      fail(where, "%ld is outside the %zu bytes of shared memory", long(at - block().shared), settings_.shared_bytes);
    check_alignment(pointer, bytes, where);
  }
  TWIN_PLAIN uint32_t offset_in_shared(const void* pointer) {
    Unseen unseen;
    return uint32_t(static_cast<const char*>(pointer) - block().shared);
  }
  TWIN_PLAIN void check_global(const void* pointer, size_t bytes, const Where& where) {
    Unseen unseen;
    if (settings_.holds && !settings_.holds(pointer, bytes)) fail(where, "a copy reads outside the workspace");
    check_alignment(pointer, bytes, where);
  }
  // It saw that a counter is not there yet: only a write of one can change that.
  TWIN_PLAIN void wait_for_a_write(const Where& where) {
    Unseen unseen;
    running_->waits_in = kCounter;
    running_->where = where;
    sleepers_.push_back(running_);
    switch_away();
  }
  TWIN_PLAIN void wrote_a_counter() {
    Unseen unseen;
    for (Thread* sleeper : sleepers_) {
      sleeper->waits_in = nullptr;
      blocks_[size_t(sleeper->block)].runnable.push_back(sleeper);
    }
    sleepers_.clear();
  }

  static const char* base_name(const Where& where) {
    const char* slash = strrchr(where.file_name(), '/');
    return slash ? slash + 1 : where.file_name();
  }

 private:
  struct AnyKernel {
    virtual ~AnyKernel() = default;
    virtual void operator()() = 0;
  };
  template <typename Kernel>
  Machine(const Settings& settings, Kernel& kernel) : settings_(settings), chance_(settings.schedule) {
    struct Holds : AnyKernel {
      explicit Holds(Kernel& kernel) : kernel(kernel) {}
      void operator()() override { kernel(); }
      Kernel& kernel;
    };
    kernel_ = std::make_unique<Holds>(kernel);
  }

  Result go() {
    Unseen unseen;
    now = this;
    Fiber::main_ = &main_;
    blocks_ = std::vector<Block>(size_t(settings_.blocks));
    for (int b = 0; b < settings_.blocks; ++b) {
      Block& one = blocks_[size_t(b)];
      one.warps.resize(size_t(settings_.threads / kLanes));
      // an allocation of its own, so that what lies beyond it is the address sanitizer's
      one.shared = static_cast<char*>(operator new[](settings_.shared_bytes, Block::kAlignment));
      memset(one.shared, 0xff, settings_.shared_bytes);  // NaN
      for (int t = 0; t < settings_.threads; ++t) {
        threads_.push_back(std::make_unique<Thread>(&Machine::enter, b, t));
        one.runnable.push_back(threads_.back().get());
      }
    }
    give(&begin_);  // a launch sees what came before it
    while (!failed_ && pick()) {
      Thread* next = running_;
      main_.switch_to(*next->fiber);
    }
    take(&end_);  // the end of a launch orders all it did before what comes next
    if (!failed_) check_that_all_are_done();
    for (auto& thread : threads_)
      if (result_.error.empty())
        Fiber::keep(std::move(thread->fiber));
      else
        (void)thread.release();  // left in the middle of something
    now = nullptr;
    return result_;
  }

  // A block keeps its turn for a while: blocks run far ahead of others, and their memory stays near.
  TWIN_PLAIN bool pick() {
    if (blocks_[turn_].runnable.empty() || chance_() % 64 == 0) {
      const size_t start = chance_() % blocks_.size();
      size_t step = 0;
      while (step < blocks_.size() && blocks_[(start + step) % blocks_.size()].runnable.empty()) ++step;
      if (step == blocks_.size()) return false;
      turn_ = (start + step) % blocks_.size();
    }
    std::vector<Thread*>& runnable = blocks_[turn_].runnable;
    const size_t at = chance_() % runnable.size();
    running_ = runnable[at];
    runnable[at] = runnable.back();
    runnable.pop_back();
    return true;
  }

  static void enter() {
    Fiber::arrived(nullptr);
    while (true) {  // one launch after another
      (*begin_thread())();
      end_thread();
    }
  }
  static AnyKernel* begin_thread() {
    Unseen unseen;
    take(&now->begin_);
    return now->kernel_.get();
  }
  static void end_thread() {
    Unseen unseen;
    Thread* self = now->running_;
    if (!self->copies.empty())
      now->fail(self->copies[0].where, "a thread ends before its copy of this line has landed");
    self->done = true;
    give(&now->end_);
    self->fiber->switch_to(now->main_);
  }
  [[noreturn]] void leave_for_good() {
    switch_away();
    std::abort();
  }
  TWIN_PLAIN void switch_away() {
    Thread* self = running_;
    if (failed_ || !pick()) {
      self->fiber->switch_to(main_);
    } else if (running_ != self) {
      self->fiber->switch_to(*running_->fiber);
    }
    running_ = self;
  }
  TWIN_PLAIN void wait(const char* instruction, const Where& where) {
    running_->waits_in = instruction;
    running_->where = where;
    switch_away();
  }
  TWIN_PLAIN void wake(const Meeting& meeting, int count) {
    const bool whole = &meeting == &block().meeting;
    const int first = running_->block * settings_.threads + (whole ? 0 : running_->thread / kLanes * kLanes);
    for (int t = first; t < first + count; ++t) {
      Thread* other = threads_[size_t(t)].get();
      if (other == running_) continue;
      other->waits_in = nullptr;
      block().runnable.push_back(other);
    }
  }

  void check_that_all_are_done() {
    int left = 0;
    Thread* first = nullptr;
    for (const auto& thread : threads_)
      if (!thread->done) {
        ++left;
        // one that waits for its own block says more than one that waits for another's
        const bool for_a_block = strcmp(thread->waits_in, kCounter) != 0;
        if (first == nullptr || (for_a_block && strcmp(first->waits_in, kCounter) == 0)) first = thread.get();
      }
    if (left == 0) return;
    char text[400];
    snprintf(text, sizeof text, "%s:%d: deadlock: block %d thread %d is in %s, and so wait %d threads in all",
             base_name(first->where), int(first->where.line()), first->block, first->thread, first->waits_in, left);
    result_.error = text;
  }

  Settings settings_;
  std::minstd_rand chance_;
  std::unique_ptr<AnyKernel> kernel_;
  Fiber main_;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Thread*> sleepers_;
  Thread* running_ = nullptr;
  size_t turn_ = 0;
  bool failed_ = false;
  char begin_ = 0, end_ = 0;
  Result result_;
};

}  // namespace twin
