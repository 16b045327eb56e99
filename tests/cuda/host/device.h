// The vocabulary of csrc/cuda/device.h for a CPU: the same names, so that the same kernels compile. The lanes of a warp
// bring the operands of a collective instruction, and each takes its results from what all have brought. See machine.h
// and matrix_unit.h.
#pragma once

#include <cassert>
#include <cstdint>

#include "machine.h"
#include "matrix_unit.h"
#include "numbers.h"

#define DIFNET_KERNEL(blocks)
#define DIFNET_PARAMETER

namespace difnet::cuda {

using twin::Machine;
using twin::Where;
#define TWIN_HERE const Where& where = Where::current()

// ---- who am I -------------------------------------------------------------------------------------------------------
TWIN_PLAIN DIFNET_DEVICE int block() { return Machine::me->block; }
TWIN_PLAIN DIFNET_DEVICE int blocks() { return Machine::now->blocks(); }
TWIN_PLAIN DIFNET_DEVICE int thread() { return Machine::me->thread; }
TWIN_PLAIN DIFNET_DEVICE int lane() { return Machine::me->lane; }
TWIN_PLAIN DIFNET_DEVICE int warp() { return Machine::me->thread / twin::kLanes; }
DIFNET_DEVICE int anew(int x) { return x; }

// ---- the block: shared memory and barriers --------------------------------------------------------------------------
template <typename T>
TWIN_PLAIN DIFNET_DEVICE T& shared_memory() {
  return *reinterpret_cast<T*>(Machine::me->of_block->shared);
}
TWIN_PLAIN DIFNET_DEVICE void barrier(TWIN_HERE) { Machine::now->barrier("a barrier", where, true); }
TWIN_PLAIN DIFNET_DEVICE bool barrier_and(bool mine, TWIN_HERE) {
  return Machine::now->barrier("barrier_and", where, mine);
}

// ---- the warp -------------------------------------------------------------------------------------------------------
TWIN_PLAIN DIFNET_DEVICE float shuffle(float x, int from, TWIN_HERE) {
  twin::Operands& all = Machine::me->of_warp->next_operands();
  all.word[0][lane()] = bits_of(x);
  Machine::now->meet_warp("shuffle", where, []() TWIN_PLAIN {});
  return float_of(all.word[0][from & 31]);
}
TWIN_PLAIN DIFNET_DEVICE float shuffle_xor(float x, int mask, TWIN_HERE) { return shuffle(x, lane() ^ mask, where); }

using Row = unsigned __int128 __attribute__((may_alias));  // eight halves

// The rows of kMatrices 8 x 8 matrices of halves; one wave reads 8 rows of 4 banks, rows that share one need another.
template <int kMatrices>
TWIN_PLAIN DIFNET_DEVICE twin::Operands& gather_rows(const Row& row, uint32_t offset, const char* instruction,
                                                     const Where& where) {
  twin::Operands& all = Machine::me->of_warp->next_operands();
  if (lane() < kMatrices * 8) {
    reinterpret_cast<Row*>(all.word)[lane()] = row;
    all.word[4][lane()] = offset;
  }
  Machine::now->meet_warp(instruction, where, [&all]() TWIN_PLAIN {
    Machine::Result& result = Machine::now->result();
    result.loaded += kMatrices * 128;
    for (int first = 0; first < kMatrices * 8; first += 8) {
      uint32_t banks = 0;
      for (int r = first; r < first + 8; ++r) {
        const uint32_t mine = 15u << all.word[4][r] / 4 % 32;
        result.bank_conflicts += (banks & mine) != 0;
        banks |= mine;
      }
    }
  });
  return all;
}
template <int kMatrices, bool kTransposed>
TWIN_PLAIN DIFNET_DEVICE void take_fragments(uint32_t (&to)[kMatrices], const twin::Operands& all) {
  const uint32_t* const words = all.word[0];
  const auto half = [words](int at) TWIN_PLAIN { return words[at / 2] >> at % 2 * 16 & 0xffffu; };
  const int r = lane() / 4, c = lane() % 4 * 2;
  for (int m = 0; m < kMatrices; ++m)
    to[m] = kTransposed ? half(m * 64 + c * 8 + r) | half(m * 64 + c * 8 + 8 + r) << 16 : words[m * 32 + lane()];
}
template <int kMatrices, bool kTransposed>
DIFNET_DEVICE void ldmatrix(uint32_t (&to)[kMatrices], const void* row, const char* instruction, const Where& where) {
  Row words = 0;
  uint32_t offset = 0;
  if (lane() < kMatrices * 8) {
    offset = Machine::now->check_shared(row, 16, where);
    words = *static_cast<const Row*>(row);  // its own row, so that the race detector knows who reads
  }
  take_fragments<kMatrices, kTransposed>(to, gather_rows<kMatrices>(words, offset, instruction, where));
}
DIFNET_DEVICE void ldmatrix4(uint32_t (&to)[4], const void* row, TWIN_HERE) {
  ldmatrix<4, false>(to, row, "ldmatrix4", where);
}
DIFNET_DEVICE void ldmatrix4_transposed(uint32_t (&to)[4], const void* row, TWIN_HERE) {
  ldmatrix<4, true>(to, row, "ldmatrix4_transposed", where);
}
DIFNET_DEVICE void ldmatrix2_transposed(uint32_t (&to)[2], const void* row, TWIN_HERE) {
  ldmatrix<2, true>(to, row, "ldmatrix2_transposed", where);
}

TWIN_PLAIN DIFNET_DEVICE void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, TWIN_HERE) {
  twin::Operands& all = Machine::me->of_warp->next_operands();
  const int me = lane();
  for (int x = 0; x < 4; ++x) all.word[x][me] = a[x];
  all.word[4][me] = b0, all.word[5][me] = b1;
  for (int x = 0; x < 4; ++x) all.sum[x / 2][me][x % 2] = sum[x];
  Machine::now->meet_warp("mma", where, [&all]() TWIN_PLAIN { twin::truncating_mma(all.sum, all.word); });
  for (int x = 0; x < 4; ++x) sum[x] = all.sum[x / 2][me][x % 2];
}

// ---- asynchronous copies: rubbish when they are issued, the data when they are waited for ---------------------------
DIFNET_DEVICE void write16(void* to, uint64_t first, uint64_t second) {  // two plain stores, which the detectors see
  static_cast<volatile uint64_t*>(to)[0] = first;
  static_cast<volatile uint64_t*>(to)[1] = second;
}
DIFNET_DEVICE void copy16(void* shared, const void* global, TWIN_HERE) {
  Machine::now->check_shared(shared, 16, where);
  Machine::now->check_global(global, 16, where);
  const volatile uint64_t* from = static_cast<const volatile uint64_t*>(global);
  const uint64_t first = from[0], second = from[1];
  write16(shared, 0xfff7fff7fff7fff7u, 0xfff7fff7fff7fff7u);
  Machine::now->start_copy(shared, global, first, second, where);
}
DIFNET_DEVICE void wait_for_copies() {
  const bool late = Machine::now->chance() >> 31 != 0;  // the copy reads when it is issued, or as late as it can
  for (int left = Machine::now->copies_under_way(); left > 0; --left) {
    const twin::Copy copy = Machine::now->next_copy(left);
    const volatile uint64_t* from = static_cast<const volatile uint64_t*>(copy.from);
    const uint64_t first = from[0], second = from[1];
    write16(copy.to, late ? first : copy.kept[0], late ? second : copy.kept[1]);
  }
}

// ---- between blocks -------------------------------------------------------------------------------------------------
DIFNET_DEVICE uint32_t load_acquire(const uint32_t* counter) {
  Machine::now->yield_at_random();
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}
DIFNET_DEVICE void add_release(uint32_t* counter, uint32_t value) {
  Machine::now->yield_at_random();
  __atomic_fetch_add(counter, value, __ATOMIC_RELEASE);
  Machine::now->wrote_a_counter();
}
DIFNET_DEVICE uint32_t add_acquire_release(uint32_t* counter, uint32_t value) {
  Machine::now->yield_at_random();
  const uint32_t before = __atomic_fetch_add(counter, value, __ATOMIC_ACQ_REL);
  Machine::now->wrote_a_counter();
  return before;
}
TWIN_PLAIN DIFNET_DEVICE void pause(TWIN_HERE) { Machine::now->wait_for_a_write(where); }
constexpr uint32_t kPatience = 1u << 26;
[[noreturn]] DIFNET_DEVICE void give_up(const char* words, int, TWIN_HERE) { Machine::now->fail(where, "%s", words); }

}  // namespace difnet::cuda
