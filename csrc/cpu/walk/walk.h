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

// Inner products of psi of this size, and smaller ones, share one polynomial between both of their weights if their
// biases are not larger either (exponential.h). Then no shift is larger than the second number.
inline constexpr int kInRange = 1 << 16, kShiftInRange = 1 << 18;

// What is subtracted from the logits of a tile's rows before exp, in the forms that weights need (exponential.h).
template <typename Real>
struct Shifts {
  Real shift[kTile];     // a multiple k ln2 where it is in range
  Real limit[kTile];     // weights of logits up to this one, as a rounded multiple of ln2, are zero
  Real exponent[kTile];  // bits: k, where a number has its exponent
};

// A bias of a tile's columns, b = m ln2 + rest with an integer m, in the forms that logits and weights need (bias.h).
template <typename Real>
struct alignas(64) TileBias {
  Real whole[kTile];    // m ln2; b itself where it is out of range or -inf
  Real integer[kTile];  // m
  Real rest[kTile];
  Real most;  // the largest of `whole`
  bool even;  // none is below it by more than kUneven (bias.h), but for -inf
  bool zero;  // all are
};

// What both directions read.
template <typename Real>
struct WalkInputs {
  WalkSizes size;
  Field state, seed, psi;
  const Real* bias;  // [N], or null
  int64_t heaviest;  // the node of the largest bias; -1 where there is none
  Real mu, beta;
  // workspace, per tile
  TileBias<Real>* tile_bias;
  Real* boxes;  // far.h
};

// Factor is what is multiplied: Real, or a pair of bf16 numbers. Panels are drawn in layouts.h.
template <typename Real, typename Factor = Real>
struct WalkForward : WalkInputs<Real> {
  Field next_state;
  Real *walked, *row_lse;  // results [N][K], [N]
  // workspace
  Factor* psi_node_panels;
  Factor* state_channel_panels;  // with a column of ones after the classes: sums[.][classes] becomes the row sum of P
  Real* sums;                    // sum over j of exp(S_ij - shift_i) state_j, in channel panels
  Shifts<Real>* shifts;          // per tile: the running maximum of each row, within kSlack
  bool* finite;                  // per tile: no NaN or Inf in psi and state, so a negligible weight may be skipped
  bool* in_range;                // per tile: psi is finite, and no norm^2 above kInRange
  Real* unit;                    // per tile: what a matrix unit multiplies (walk/unit_forward.h); null without one
};

// What a step makes before it is committed: the memory of one worker.
template <typename Real>
struct WalkForwardScratch {
  Real* sums[2];         // of tile a and of tile b, like WalkForward::sums
  uint64_t written[2];   // rows of `sums` that hold something, a bit for every kRowGroup of them
  Shifts<Real> rows[2];  // those of the tiles, raised where a logit asks for it
  bool raised;
  // with a matrix unit: its memory, its configuration that the thread had, and whether it made this step
  Real* unit;
  unsigned char callers_unit[64];
  bool on_unit;
};

template <typename Real, typename Factor = Real>
struct WalkBackward : WalkInputs<Real> {
  Field grad_next, grad_psi;                    // grad_psi without data where it is not wanted
  const Real *walked, *row_lse, *grad_row_lse;  // [N][K], [N]; grad_row_lse is null where row_lse has no gradient
  Real *grad_state, *grad_seed;                 // [N][K]; grad_seed is added to
  Real* grad_bias;                              // [N], or null where it is not wanted
  double* grad_gates;                           // per tile: its share of dL/dmu and dL/dbeta
  // workspace
  Factor *psi_node_panels, *psi_channel_panels, *h_channel_panels;
  Real *state_node_panels, *h_node_panels, *delta;
  Shifts<Real>* shifts;         // per tile: the row_lse, of which the part below a multiple of ln2 is in h and delta
  Real *psi_sums, *state_sums;  // B5, B6, in channel panels
  Real* off_diagonal;           // per node i: sum over j != i of P_ij (h_i y_j - delta_i)
  Real* row_sums;               // per node i: sum over j != i of T_ij, where grad_bias is wanted
  bool *finite, *in_range;
  Real* unit;  // as in the forward
};

template <typename Real>
struct WalkBackwardScratch {
  Real *psi_sums[2], *state_sums[2];  // of tile a and of tile b
  uint64_t written[2];
  Real off_diagonal[2][kTile], row_sums[2][kTile];
  Real* unit;
  unsigned char callers_unit[64];
  bool on_unit;
};

// What steps on a matrix unit need beside them; all null without one. A worker begins and ends its use of the unit.
template <typename Scratch>
struct WalkUnit {
  void (*begin)(Scratch&);
  void (*end)(Scratch&);
  // numbers of 32 bits for a tile, and for a worker
  int64_t (*of_tile)(const WalkSizes&, bool grad_psi);
  int64_t (*of_worker)(const WalkSizes&);
};

// The steps of a walk. The prologue packs a tile; `multiply` makes what two tiles (or one tile and itself) add to each
// other's rows from one set of logits, in scratch memory; `commit` adds it; the epilogue turns the sums of a tile into
// results. A tile is changed by one step at a time (schedule.h), so steps need no locks.
template <typename Walk, typename Scratch>
struct WalkSteps {
  void (*prologue)(const Walk&, int64_t tile);
  void (*multiply)(const Walk&, int64_t a, int64_t b, Scratch&);
  void (*commit)(const Walk&, int64_t a, int64_t b, Scratch&);
  void (*epilogue)(const Walk&, int64_t tile);
  WalkUnit<Scratch> unit = {};
};

// What an instruction set brings: its sizes, in numbers, and its steps.
template <typename Real, typename Factor = Real>
struct WalkKernels {
  int channel_unit, panel, per_factor;
  WalkSteps<WalkForward<Real, Factor>, WalkForwardScratch<Real>> forward;
  WalkSteps<WalkBackward<Real, Factor>, WalkBackwardScratch<Real>> backward;
};

// What an instruction set with a matrix unit brings, for fp32, bf16 and fp16 fields, and how tests and benchmarks reach
// the unit.
struct WalkUnitKernels {
  const char* name;  // of the set
  WalkKernels<float> high, medium, bf16, fp16;
  void (*multiply)(float* sums, const uint32_t* a, const uint32_t* b);  // one product of registers (unit/unit.h)
  void (*spin)(int64_t steps);  // products that wait for nothing: four of registers a step
  void (*counts)(int64_t* to);  // loads, products and reads of a model so far
};

}  // namespace difnet::cpu
