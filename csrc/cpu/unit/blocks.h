// Products of blocks on a matrix unit: kBlock x kBlock sums in four registers, two registers of each operand. Every
// product of a walk is one of them.
//
// The unit works beside the vector instructions of the same core. So products stand in a queue, whose owner runs a few
// of their steps whenever it has something else to do in between: the sums do not depend on when.
#pragma once

#include "cpu/unit/operands.h"

namespace difnet::cpu::DIFNET_ISA {

// One form of an operand from one block of rows on: its blocks of numbers follow one another.
struct Side {
  const uint32_t* blocks;
  int64_t part;
};
DIFNET_INLINE Side side_a(const Packed& x, int64_t rows) { return {x.of_a(rows), x.part}; }
DIFNET_INLINE Side side_b(const Packed& x, int64_t rows) { return {x.of_b(rows), x.part}; }

struct BlockProduct {
  Side a, b;
  const Order* order;
  int64_t depth;
  uint32_t without;  // blocks of numbers that are left out, a bit for each
  float* to;         // kBlock rows, `stride` numbers apart
  int64_t stride;
};

class BlockProducts {
 public:
  // At most four at a time; the queue is empty then.
  DIFNET_MEMBER void add(const BlockProduct& product) { queue_[count_++] = product; }

  DIFNET_MEMBER int64_t steps() const {
    int64_t steps = 0;
    for (int x = 0; x < count_; ++x) steps += queue_[x].order->count * queue_[x].depth;
    return steps;
  }

  __attribute__((noinline)) void run(int64_t steps) {
    for (; steps > 0 && at_ < count_; --steps) step(queue_[at_]);
    if (at_ == count_) at_ = count_ = 0;
  }
  DIFNET_MEMBER void run() { run(steps()); }

 private:
  DIFNET_MEMBER void step(const BlockProduct& product) {
    if (parts_ == 0 && depth_ == 0) {
      Unit::clear<0>();
      Unit::clear<1>();
      Unit::clear<2>();
      Unit::clear<3>();
    }
    if ((product.without >> depth_ & 1) == 0) {
      const auto parts = product.order->parts[parts_];
      const uint32_t* a = product.a.blocks + parts.a * product.a.part + depth_ * kBlockPlaces;
      const uint32_t* b = product.b.blocks + parts.b * product.b.part + depth_ * kBlockPlaces;
      Unit::load_a<4>(a);
      Unit::load_b<6>(b);
      Unit::multiply<0, 4, 6>();
      Unit::load_b<7>(b + kRegister);
      Unit::multiply<1, 4, 7>();
      Unit::load_a<5>(a + kRegister);
      Unit::multiply<2, 5, 6>();
      Unit::multiply<3, 5, 7>();
    }
    if (++depth_ < product.depth) return;
    depth_ = 0;
    if (++parts_ < product.order->count) return;
    parts_ = 0;
    ++at_;
    Unit::read_rows<0>(product.to, product.stride);
    Unit::read_rows<1>(product.to + kSide, product.stride);
    Unit::read_rows<2>(product.to + kSide * product.stride, product.stride);
    Unit::read_rows<3>(product.to + kSide * product.stride + kSide, product.stride);
  }

  BlockProduct queue_[4];
  int count_ = 0, at_ = 0;
  int parts_ = 0;
  int64_t depth_ = 0;
};

}  // namespace difnet::cpu::DIFNET_ISA
