// The vocabulary of the kernels: one function per instruction of the card, and nothing that decides anything.
//
// Kernels include <device.h>. nvcc finds this file; the tests find tests/cuda/host/device.h, which has the same
// functions for a CPU on which every CUDA thread is a fiber. So the kernel that is tested is the kernel that is
// shipped.
#pragma once

#include <cstdint>

#define DIFNET_DEVICE __device__ __forceinline__
// A kernel of kThreads threads that leaves room for `blocks` of its kind on one multiprocessor.
#define DIFNET_KERNEL(blocks) __global__ __launch_bounds__(::difnet::cuda::kThreads, blocks)
#define DIFNET_PARAMETER __grid_constant__  // read where the driver put it; never copied to a thread's own memory

// what assert() of a kernel calls, also where NDEBUG is defined
extern "C" __device__ void __assertfail(const char* words, const char* file, unsigned line, const char* function,
                                        size_t);

namespace difnet::cuda {

// ---- who am I -------------------------------------------------------------------------------------------------------
DIFNET_DEVICE int block() { return int(blockIdx.x); }
DIFNET_DEVICE int blocks() { return int(gridDim.x); }
DIFNET_DEVICE int thread() { return int(threadIdx.x); }
DIFNET_DEVICE int lane() { return int(threadIdx.x % 32); }
DIFNET_DEVICE int warp() { return int(threadIdx.x / 32); }

// x, of which the compiler knows nothing: what is derived from it is computed here, not kept in registers from before.
DIFNET_DEVICE int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- the block: shared memory and barriers --------------------------------------------------------------------------
template <typename T>
DIFNET_DEVICE T& shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return *reinterpret_cast<T*>(memory);
}
DIFNET_DEVICE void barrier() { __syncthreads(); }
DIFNET_DEVICE bool barrier_and(bool mine) { return __syncthreads_and(mine) != 0; }

// ---- the warp -------------------------------------------------------------------------------------------------------
DIFNET_DEVICE float shuffle(float x, int from) { return __shfl_sync(0xffffffffu, x, from); }
DIFNET_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

DIFNET_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// Four 8 x 8 matrices of 16-bit numbers; lanes 8m to 8m + 7 give the rows of matrix m. Lane l gets the numbers of row l
// / 4, columns 2 (l % 4) and the next; transposed, those of column l / 4.
DIFNET_DEVICE void ldmatrix4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
DIFNET_DEVICE void ldmatrix4_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
DIFNET_DEVICE void ldmatrix2_transposed(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address(row))
               : "memory");
}

// sum [16 x 8] += a [16 x 16] b [16 x 8], fp16 times fp16 in fp32. The matrix units align the products with the sum and
// truncate; they do not round.
DIFNET_DEVICE void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- asynchronous copies, global to shared, 16 bytes each, past the first-level cache -------------------------------
DIFNET_DEVICE void copy16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// Those of this thread; a barrier makes them those of the block.
DIFNET_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- between blocks: counters in global memory ----------------------------------------------------------------------
DIFNET_DEVICE uint32_t load_acquire(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
DIFNET_DEVICE void add_release(uint32_t* counter, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
// Returns what was there before.
DIFNET_DEVICE uint32_t add_acquire_release(uint32_t* counter, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
  return before;
}
DIFNET_DEVICE void pause() { __nanosleep(64); }
// Polls, each a way to the second-level cache and back, and a pause that may last from nothing to twice what it says:
// seconds, where a unit takes micro- or milliseconds.
constexpr uint32_t kPatience = 1u << 26;

// Ends the launch; the driver prints the words, which name the wait, its line, the block and the thread.
DIFNET_DEVICE void give_up(const char* words, int line) {
  __assertfail(words, "difnet_kernels/csrc/cuda", unsigned(line), "wait_for", 1);
}

// ---- numbers --------------------------------------------------------------------------------------------------------
DIFNET_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DIFNET_DEVICE float larger(float a, float b) { return fmaxf(a, b); }  // NaN loses
DIFNET_DEVICE float smaller(float a, float b) { return fminf(a, b); }
DIFNET_DEVICE float magnitude(float x) { return fabsf(x); }
DIFNET_DEVICE float exp2_fast(float x) {  // 2^x to 2 ulp; what would be subnormal is zero
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DIFNET_DEVICE float log2_exact(float x) { return log2f(x); }  // to 1 ulp, 0 at 1
DIFNET_DEVICE float inverse_root(float x) { return __frsqrt_rn(x); }
DIFNET_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
DIFNET_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
DIFNET_DEVICE float half_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
DIFNET_DEVICE uint16_t float_to_half(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
// Two halves in one register, the first in its low bits.
DIFNET_DEVICE uint32_t two_halves(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}
DIFNET_DEVICE uint16_t float_to_bfloat16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

}  // namespace difnet::cuda
