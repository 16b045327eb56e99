// How tiles lie in memory, and the sizes of the micro-kernels that read them.
//
// A tile holds kTile nodes and the channels of a field, padded with zeros. A micro-kernel keeps kMR x kNR sums in
// registers: kNR numbers side by side in two registers, for each of kMR numbers that are broadcast. So operands are
// packed in panels of kNR:
//
//   node panels [panel][channel][node of the panel]: for inner products over channels (S = psi psi^T)
//
//        nodes    0 ... kNR-1                    kNR ... 2kNR-1
//     channel 0   x x x x x x x x   }            x x x x x x x x
//     channel 1   x x x x x x x x   } a panel    x x x x x x x x       one channel of a panel is two registers,
//       ...                         }              ...                 one channel of one node is a broadcast
//
//   channel panels [panel][node][channel of the panel]: for sums over nodes (w = P y)
//
//        channels  0 ... kNR-1                   kNR ... 2kNR-1
//      node 0      x x x x x x x x  }            x x x x x x x x
//      node 1      x x x x x x x x  } a panel    x x x x x x x x       a panel of a tile is one stream of memory
//       ...                         }              ...                 that stays in the first-level cache
//
//   micro-tiles of weights [panel of nodes i][kMR nodes j][j][i]: a tile of P or T, kNR nodes i side by side (products.h)
//
// A factor is what is multiplied at once: one number, or a pair of bf16 numbers (VNNI order). Then one place of a
// layout holds two neighbouring channels (node panels), or two neighbouring nodes (channel panels, weights):
//
//        node panels of pairs                    channel panels of pairs
//     channels 0,1  (x x)(x x)(x x)(x x)         nodes 0,1  (x x)(x x)(x x)(x x)
//     channels 2,3  (x x)(x x)(x x)(x x)         nodes 2,3  (x x)(x x)(x x)(x x)
#pragma once

#include "cpu/simd.h"
#include "cpu/tile.h"

namespace difnet::cpu::DIFNET_ISA {

// What a factor consists of. Specialised, with its arithmetic, in products.h and products_bf16.h.
template <typename Factor>
struct Factors;

// Numbers in a factor.
template <typename Factor>
inline constexpr int kPerFactor = Factors<Factor>::kPerFactor;

// What products of factors are summed in.
template <typename Factor>
using Sum = typename Factors<Factor>::Sum;

// The numbers that factors consist of, in their order.
template <typename Factor>
DIFNET_INLINE auto* numbers(Factor* factors) {
  return reinterpret_cast<typename Factors<Factor>::Number*>(factors);
}
template <typename Factor>
DIFNET_INLINE const auto* numbers(const Factor* factors) {
  return reinterpret_cast<const typename Factors<Factor>::Number*>(factors);
}

// Broadcast operands of a micro-kernel: with two registers each, as many sums as the register file holds.
inline constexpr int kMR = kRegisters >= 32 ? 8 : 4;

// Numbers side by side: two registers.
template <typename Real>
inline constexpr int kNR = 2 * kWidth<Real>;

// Channels are computed in multiples of this: half a register where registers are wide enough to halve.
template <typename Real>
inline constexpr int kChannelUnit = kWidth<Real> >= 8 ? kWidth<Real> / 2 : kWidth<Real>;

// Which of the numbers of a tile in node panels of `factors` factors is channel c of node n.
template <typename Factor>
DIFNET_INLINE int64_t in_node_panels(int64_t factors, int64_t n, int64_t c) {
  constexpr int L = kNR<Factor>, per_factor = kPerFactor<Factor>;
  return ((n / L * factors + c / per_factor) * L + n % L) * per_factor + c % per_factor;
}

// The same in channel panels.
template <typename Factor>
DIFNET_INLINE int64_t in_channel_panels(int64_t n, int64_t c) {
  constexpr int per_factor = kPerFactor<Factor>;
  const int64_t row = c / kNR<Factor> * (kTile / per_factor) + n / per_factor;
  return (row * kNR<Factor> + c % kNR<Factor>)*per_factor + n % per_factor;
}

}  // namespace difnet::cpu::DIFNET_ISA
