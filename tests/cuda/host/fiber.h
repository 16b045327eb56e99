// A fiber: a stack of its own, and a switch that the sanitizers are told about. Twelve lines of assembly, for x86-64.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__)
#error "the host twin of the CUDA kernels switches stacks in x86-64 assembly; this processor is another"
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

// What the machine computes in memory of its own is nothing to the detectors, and costs nothing under them. Such a
// function calls its like alone, for what it calls is seen again: no containers of the standard library.
#define TWIN_PLAIN __attribute__((no_sanitize("thread", "address", "undefined")))

namespace twin {

// The same for what is not plain, at a price: under the race detector one such object costs more than a barrier.
struct Unseen {
#if defined(__SANITIZE_THREAD__)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
};

// What one thread does before it gives the key, another may rely on after it takes it.
TWIN_PLAIN inline void give(void* key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(key);
#else
  (void)key;
#endif
}
TWIN_PLAIN inline void take(void* key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(key);
#else
  (void)key;
#endif
}

// switch_stack(from, to): keeps the callee-saved registers and the stack pointer in *from, goes on where *to was kept.
extern "C" void twin_switch_stack(void** from, void* to);
asm(R"(
.text
.type twin_switch_stack, @function
twin_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size twin_switch_stack, .-twin_switch_stack
)");

class Fiber {
 public:
  Fiber() {  // the one that runs already
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_get_current_fiber();
#endif
  }
  Fiber(const Fiber&) = delete;

  // One that is kept from a launch before, or a new one. To make one costs the race detector a millisecond.
  static Fiber* take(void (*body)()) {
    if (kept_().empty()) return new Fiber(body);
    Fiber* one = kept_().back();
    kept_().pop_back();
    return one;
  }
  // All fibers have the same body, which goes on with the next launch.
  static void keep(Fiber* fiber) { kept_().push_back(fiber); }

  // From the fiber that runs, `this`, to another. No order between the two follows from the switch.
  TWIN_PLAIN void switch_to(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, other.stack_, other.size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(other.tsan_, 1);
#endif
    twin_switch_stack(&pointer_, other.pointer_);
    arrived(fake_);
  }
  // What the switch to this fiber will read first.
  TWIN_PLAIN void fetch() const {
    __builtin_prefetch(pointer_);
    __builtin_prefetch(static_cast<const char*>(pointer_) + 64);
  }
  // A fiber that runs for the first time says so.
  TWIN_PLAIN static void arrived(void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    if (main_ != nullptr && main_->stack_ == nullptr) main_->stack_ = bottom, main_->size_ = size;
#else
    (void)fake;
#endif
  }
  static inline Fiber* main_ = nullptr;

 private:
  static constexpr size_t kStack = 192 << 10, kPage = 4096, kColours = 61;

  explicit Fiber(void (*body)()) : size_(kStack) {
    char* stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (stack == MAP_FAILED) std::abort();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStack);  // a fiber that ended here has left its frames
#endif
    mprotect(stack, kPage, PROT_NONE);  // a stack that overflows is a crash
    stack_ = stack;
    // stacks that all end alike would share the few lines of a cache that such addresses have
    static size_t made = 0;
    void** top = reinterpret_cast<void**>(stack + kStack - made++ % kColours * (kPage / 4 + 64));
    *--top = nullptr;  // so that the body starts with the stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    pointer_ = top;
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_create_fiber(0);
#endif
  }
  static std::vector<Fiber*>& kept_() {
    static auto& kept = *new std::vector<Fiber*>;
    return kept;
  }

  void* pointer_ = nullptr;
  void* tsan_ = nullptr;
  void* fake_ = nullptr;
  const void* stack_ = nullptr;
  size_t size_ = 0;
};

}  // namespace twin
