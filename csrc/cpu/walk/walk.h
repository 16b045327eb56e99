// One walk over one image as the kernels see it: pointers, sizes, strides. Shared by the drivers (compiled once) and
// the kernels (compiled once per instruction set), so nothing here may contain code.
#pragma once

#include "cpu/tile.h"
#include "field.h"

namespace difnet::cpu {

struct WalkSizes {
  int64_t nodes, classes, embed;
  int64_t state_columns, embed_columns;  // channels computed; a state's include its row sum
  int64_t state_stored, embed_stored;    // channels that channel panels have room for
  int64_t embed_factors;                 // of a node in node panels
};

// Factor is what is multiplied: Real, or a pair of bf16 numbers. Panels are drawn in layouts.h.
template <typename Real, typename Factor = Real>
struct WalkForward {
  WalkSizes size;
  Field state, seed, psi, next_state;
  Real *walked, *row_lse;  // results [N][K], [N]
  Real mu, beta;
  // workspace
  Factor* psi_node_panels;
  Factor* state_channel_panels;  // with a column of ones after the classes: sums[.][classes] becomes the row sum of P
  Real* sums;                    // sum over j of exp(S_ij - shift_i) state_j, in channel panels
  Real* shift;                   // running maximum of each row, within kSlack
  bool* finite;                  // per tile: no NaN or Inf in psi and state, so a negligible weight may be skipped
};

template <typename Real, typename Factor = Real>
struct WalkBackward {
  WalkSizes size;
  Field grad_next, state, seed, psi, grad_psi;
  const Real *walked, *row_lse;
  Real *grad_state, *grad_seed;  // [N][K]; grad_seed is added to
  double* grad_gates;            // per tile: its share of dL/dmu and dL/dbeta
  Real mu, beta;
  // workspace
  Factor *psi_node_panels, *psi_channel_panels, *h_channel_panels;
  Real *state_node_panels, *h_node_panels, *row_lse_padded, *delta;
  Real *psi_sums, *state_sums;  // B5, B6, in channel panels
  Real* off_diagonal;           // per node i: sum over j != i of P_ij (h_i y_j - delta_i)
  bool* finite;
};

// The steps of a walk. The prologue packs a tile and walks its diagonal; `tiles` walks two different tiles, both ways,
// from one set of logits; the epilogue turns the sums of a finished tile into results. A tile is touched by one step at
// a time (schedule.h), so steps need no locks.
template <typename Walk>
struct WalkSteps {
  void (*prologue)(const Walk&, int64_t tile);
  void (*tiles)(const Walk&, int64_t a, int64_t b);
  void (*epilogue)(const Walk&, int64_t tile);
};

// What an instruction set brings: its sizes, in numbers, and its steps.
template <typename Real, typename Factor = Real>
struct WalkKernels {
  int channel_unit, panel, per_factor;
  WalkSteps<WalkForward<Real, Factor>> forward;
  WalkSteps<WalkBackward<Real, Factor>> backward;
};

}  // namespace difnet::cpu
