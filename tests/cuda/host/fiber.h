// A fiber: a stack of its own, and a switch that the sanitizers are told about. Twelve lines of assembly, for x86-64.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the host twin of the CUDA kernels switches stacks in x86-64 assembly; this processor is another"
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
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

// not inlined into what the race detector sees
#define TWIN_UNSEEN __attribute__((noinline, no_sanitize("thread")))
// what the machine computes in memory of its own costs no detector anything
#define TWIN_PLAIN __attribute__((no_sanitize("thread", "address", "undefined")))

namespace twin {

// The machine's own reads and writes are no reads and writes of the kernel.
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
inline void give(void* key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(key);
#else
  (void)key;
#endif
}
inline void take(void* key) {
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
  static constexpr size_t kStack = 128 << 10;

  Fiber() {  // the one that runs already
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_get_current_fiber();
#endif
  }
  explicit Fiber(void (*body)()) : owns_(true) {
    stack_ = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (stack_ == MAP_FAILED) std::abort();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStack);  // a fiber that ended here has left its frames
#endif
    mprotect(stack_, 4096, PROT_NONE);  // a stack that overflows is a crash
    void** top = reinterpret_cast<void**>(stack_ + kStack);
    *--top = nullptr;  // so that the body starts with the stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    pointer_ = top;
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_create_fiber(0);
#endif
  }
  Fiber(const Fiber&) = delete;

  // One that is kept from a launch before, or a new one. To make one costs the race detector a millisecond.
  static std::unique_ptr<Fiber> take(void (*body)()) {
    std::vector<std::unique_ptr<Fiber>>& kept = kept_();
    if (kept.empty()) return std::make_unique<Fiber>(body);
    std::unique_ptr<Fiber> one = std::move(kept.back());
    kept.pop_back();
    return one;
  }
  // All fibers have the same body, which goes on with the next launch.
  static void keep(std::unique_ptr<Fiber> fiber) { kept_().push_back(std::move(fiber)); }

  ~Fiber() {
    if (!owns_) return;
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(tsan_);
#endif
    munmap(stack_, kStack);
  }

  // From the fiber that runs, `this`, to another. No order between the two follows from the switch.
  TWIN_UNSEEN void switch_to(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, other.owns_ ? other.stack_ : other.bottom_,
                                   other.owns_ ? kStack : other.size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(other.tsan_, 1);
#endif
    twin_switch_stack(&pointer_, other.pointer_);
    arrived(fake_);
  }
  // A fiber that runs for the first time says so.
  TWIN_UNSEEN static void arrived(void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    if (main_ != nullptr && main_->bottom_ == nullptr) {
      main_->bottom_ = bottom;
      main_->size_ = size;
    }
#else
    (void)fake;
#endif
  }
  static inline Fiber* main_ = nullptr;

 private:
  static std::vector<std::unique_ptr<Fiber>>& kept_() {
    static auto& kept = *new std::vector<std::unique_ptr<Fiber>>;
    return kept;
  }

  bool owns_ = false;
  char* stack_ = nullptr;
  void* pointer_ = nullptr;
  void* tsan_ = nullptr;
  void* fake_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace twin
