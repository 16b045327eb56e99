// Where things lie: fields of any dtype and strides, tiles in shared memory, and waiting for what another block writes.
#pragma once

#include <device.h>

#include "cuda/arguments.h"

namespace difnet::cuda {

// ---- fields: any dtype, any strides ---------------------------------------------------------------------------------
DIFNET_DEVICE float wide_half(uint16_t bits) { return half_to_float(bits); }
DIFNET_DEVICE float wide_bf16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

DIFNET_DEVICE float load(const BatchField& field, int64_t at) {
  switch (field.dtype) {
    case DType::kHalf: return wide_half(static_cast<const uint16_t*>(field.data)[at]);
    case DType::kBf16: return wide_bf16(static_cast<const uint16_t*>(field.data)[at]);
    default: return static_cast<const float*>(field.data)[at];
  }
}
DIFNET_DEVICE void store(DType dtype, void* data, int64_t at, float x) {
  switch (dtype) {
    case DType::kHalf: static_cast<uint16_t*>(data)[at] = float_to_half(x); break;
    case DType::kBf16: static_cast<uint16_t*>(data)[at] = float_to_bfloat16(x); break;
    default: static_cast<float*>(data)[at] = x;
  }
}
DIFNET_DEVICE int64_t place(const BatchField& field, int image, int channel, int node) {
  return image * field.batch_stride + channel * field.channel_stride + node * field.node_stride;
}

// Views of one tensor may begin alike and still differ.
DIFNET_DEVICE bool is_same(const BatchField& one, const BatchField& other) {
  return one.data == other.data && one.batch_stride == other.batch_stride &&
         one.channel_stride == other.channel_stride && one.node_stride == other.node_stride && one.dtype == other.dtype;
}

// Nodes from `first` to at most kRows further, below `end`, as [kRows][width + 1] floats in shared memory, the rest zero:
// read along the axis whose numbers are neighbours, whatever that is, so that what follows has one order of summation.
// One loop for all dtypes: the code of the preparation is most of a kernel's.
template <int kWidth>
DIFNET_DEVICE void stage(const BatchField& field, int image, int first, int end, float* rows) {
  constexpr int kAtOnce = kWidth % 64 == 0 ? 8 : 4;  // loads on their way
  const int64_t from = place(field, image, 0, first);
  const bool along_nodes = field.node_stride <= field.channel_stride;
  const bool narrow = field.dtype != DType::kFloat, half = field.dtype == DType::kHalf;
#pragma unroll 1
  for (int begin = thread(); begin < kRows * kWidth; begin += kAtOnce * kThreads) {
    uint32_t bits[kAtOnce];
    const auto row = [&](int at) { return along_nodes ? at % kRows : at / kWidth; };
    const auto channel = [&](int at) { return along_nodes ? at / kRows : at % kWidth; };
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int at = begin + n * kThreads;
      const int64_t number = from + channel(at) * field.channel_stride + row(at) * field.node_stride;
      const bool inside = row(at) < end - first && channel(at) < field.channels;
      bits[n] = 0;
      if (inside && narrow) bits[n] = static_cast<const uint16_t*>(field.data)[number];
      if (inside && !narrow) bits[n] = static_cast<const uint32_t*>(field.data)[number];
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int at = begin + n * kThreads;
      const float wide = half ? wide_half(uint16_t(bits[n])) : float_of(narrow ? bits[n] << 16 : bits[n]);
      rows[row(at) * (kWidth + 1) + channel(at)] = wide;
    }
  }
}

// ---- tiles of 16-bit numbers in shared memory, 8 numbers (16 bytes) a chunk -----------------------------------------
// Rows of 128 or 256 bytes would all start in one bank: their chunks are permuted by the row. Rows of 48 bytes do not.
template <int kWidth>
DIFNET_DEVICE int chunk_at(int row, int chunk) {
  if constexpr (kWidth % 64 == 0) chunk ^= row & 7;
  return (row * (kWidth / 8) + chunk) * 8;
}

template <int kWidth, int kNodes>
DIFNET_DEVICE void copy_tile(uint16_t* to, const uint16_t* from, int me = thread()) {
#pragma unroll
  for (int at = me; at < kNodes * kWidth / 8; at += kThreads) {
    const int place = kWidth % 64 == 0 ? chunk_at<kWidth>(at / (kWidth / 8), at % (kWidth / 8)) : at * 8;
    copy16(to + place, from + at * 8);
  }
}

// ---- counters -------------------------------------------------------------------------------------------------------
DIFNET_DEVICE uint32_t* finished(const auto& c) { return c.counters; }
DIFNET_DEVICE uint32_t* reached(const auto& c, int image) { return c.counters + 1 + image; }
DIFNET_DEVICE uint32_t* measured(const auto& c, int t, int image) {
  return reached(c, c.images + t * c.images + image);
}
DIFNET_DEVICE uint32_t* arrived(const auto& c, int image, int row_tile) {
  return measured(c, c.walks, 0) + image * c.row_tiles + row_tile;
}
// kInputs once ψ_t and y_t of the row tile can be read.
constexpr uint32_t kInputs = 2;
DIFNET_DEVICE uint32_t* ready(const auto& c, int t, int image, int row_tile) {
  return arrived(c, c.images, 0) + (t * c.images + image) * c.row_tiles + row_tile;
}

DIFNET_DEVICE uint32_t* end_of_counters(const auto& c) { return ready(c, c.walks, 0, 0); }

// ψ_t or y_t of the row tile is written, by all threads of the block.
DIFNET_DEVICE void hand_over(const auto& c, int t, int image, int row_tile) {
  barrier();
  if (thread() == 0) add_release(ready(c, t, image, row_tile), 1);
}

// One thread waits; a barrier then gives the block what it saw.
DIFNET_DEVICE void wait_for(const uint32_t* counter, uint32_t count, const char* words, int line) {
  for (uint32_t polls = 0; load_acquire(counter) < count; ++polls) {
    pause();
    if (polls == kPatience) give_up(words, line);
  }
}

// The last block out leaves all `count` counters, the first of them its own, at zero for the next launch. Whether this is
// it.
DIFNET_DEVICE bool leave(uint32_t* counters, int64_t count, uint32_t* before) {
  barrier();
  if (thread() == 0) *before = add_acquire_release(counters, 1);
  barrier();
  if (*before != uint32_t(blocks() - 1)) return false;
#pragma unroll 1
  for (int64_t at = thread(); at < count; at += kThreads) counters[at] = 0;
  return true;
}
DIFNET_DEVICE bool leave(const auto& c, uint32_t* before) {
  return leave(finished(c), end_of_counters(c) - c.counters, before);
}

}  // namespace difnet::cuda
