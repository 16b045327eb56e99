// One walk over one image as the CPU kernels see it: pointers, sizes, strides. Shared by the drivers (compiled once) and
// the kernels (compiled once per instruction set), so nothing here may contain code.
#pragma once

#include <stdint.h>

namespace difnet {

// Nodes of a tile: the unit of work, of scheduling and of padding.
inline constexpr int kTile = 64;

enum class DType : int8_t { kFloat, kDouble, kHalf, kBFloat16 };

struct BFloat16 {
  uint16_t bits;
};

// Two numbers side by side, whose products are summed in one step: of neighbouring channels, or of neighbouring nodes.
struct alignas(4) Pair {
  BFloat16 first, second;
};

// A field (B, C, N) of any dtype and strides (in elements), at one image.
struct Field {
  void* data;
  int64_t channel_stride, node_stride;
  DType dtype;
};

struct Sizes {
  int64_t nodes, classes, embed;
  int64_t state_columns, embed_columns;  // channels computed; a state's include its row sum
  int64_t state_stored, embed_stored;    // channels that "rows" have room for
  int64_t embed_factors;                 // of a node in "lanes"
};

// Layouts of a tile, both padded with zeros: "lanes" is [lane block][channel][lane], "rows" is [panel][node][channel of the
// panel] (products.h). Factor is what is multiplied: Real, or pairs of channels in lanes and pairs of nodes in rows.
template <typename Real, typename Factor = Real>
struct Forward {
  Sizes size;
  Field state, seed, psi, next_state;
  Real *walked, *row_lse;  // results [N][K], [N]
  Real mu, beta;
  // workspace
  Factor* psi_lanes;
  Factor* state_rows;  // with a column of ones after the classes, so that sums[.][classes] becomes the row sum of P
  Real* sums;          // sum over j of exp(S_ij - shift_i) state_j
  Real* shift;         // running maximum of each row, within kSlack
  bool* finite;        // per tile: no NaN or Inf in psi and state, so a negligible weight may be skipped
};

template <typename Real, typename Factor = Real>
struct Backward {
  Sizes size;
  Field grad_next, state, seed, psi, grad_psi;
  const Real *walked, *row_lse;
  Real *grad_state, *grad_seed;  // [N][K]; grad_seed is added to
  double* grad_gates;            // per tile: its share of dL/dmu and dL/dbeta
  Real mu, beta;
  // workspace
  Factor *psi_lanes, *psi_rows, *h_rows;
  Real *state_lanes, *h_lanes, *row_lse_padded, *delta;
  Real *psi_sums, *state_sums;  // B5, B6
  Real* pull;                   // per node i: sum over j != i of P_ij (h_i y_j - delta_i)
  bool* finite;
};

// The steps of a walk on tiles. `open` prepares a tile and walks its diagonal; `pair` walks two different tiles, both
// ways, from one set of logits; `close` turns the sums of a finished tile into results. A tile is touched by one step at a
// time (schedule.h), so steps need no locks.
template <typename Walk>
struct Steps {
  void (*open)(const Walk&, int64_t tile);
  void (*pair)(const Walk&, int64_t a, int64_t b);
  void (*close)(const Walk&, int64_t tile);
};

}  // namespace difnet
