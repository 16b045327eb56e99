"""The cascade backward (B1-B7), last walk first. The states are recomputed from seed and walked; ψ is prepared
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import split_plan
from .gradient_prepare import gate_reduce_kernel, gradient_begin_kernel, gradient_end_kernel, gradient_prepare_kernel
from .plan import (
    INTERPRETED,
    Card,
    Layout,
    Walk,
    card_of,
    contiguous_axis,
    fp32_for_interpreter,
    launch,
    on_device,
    plan_walks,
)
from .prepared import PreparedPsi, PreparedState, prepare_psi, prepare_state
from .walk_backward import walk_backward_combine_kernel, walk_backward_kernel


def cascade_backward(
    grad_states: Tensor,
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    *,
    grad_state: Tensor | None,
    grad_seed: Tensor,
    grad_psi: Sequence[Tensor],
    grad_mu: Tensor,
    grad_beta: Tensor,
) -> None:
    """B1-B7 into preallocated gradients, from what this backend's cascade_forward wrote to walked and row_lse.

    grad_states (S, B, K, N) holds every step's gradient when S = T, else the last; any strides, 0 included. Without a
    state (grad_state None) the gradient of y⁰ is added to grad_seed (W5).
    """
    card = card_of(seed.device)
    walks = plan_walks("backward", psi, seed, precision, card)
    with on_device(seed):
        if not INTERPRETED:
            _run(grad_states, state, seed, psi, mu, beta, walked, row_lse, walks, card,
                 grad_state, grad_seed, grad_psi, grad_mu, grad_beta)  # fmt: skip
            return
        outputs = [x for x in (grad_state, grad_seed, *grad_psi) if x is not None]
        inputs = [x for x in (grad_states, state, seed, *psi) if x is not None]
        with fp32_for_interpreter(inputs, outputs) as fp32:
            _run(fp32(grad_states), fp32(state), fp32(seed), [fp32(p) for p in psi], mu, beta, walked, row_lse,
            walks, card,
                 fp32(grad_state), fp32(grad_seed), [fp32(p) for p in grad_psi], grad_mu, grad_beta)  # fmt: skip


@dataclass
class Gradient:
    """What one step hands to the next: g = ∂L/∂yᵗ [B, C, n_pad, KP] and the parts [B, reaches] of its largest row
    sum."""

    g: Tensor
    reach: Tensor
    reaches: int


@dataclass(frozen=True)
class Streamed:
    """What gradient_prepare leaves for walk_backward: halves of y and h, the row vectors, the spread of every column
    tile."""

    y_hi: Tensor
    y_lo: Tensor
    h_hi: Tensor
    h_lo: Tensor
    h_scale: Tensor
    lse: Tensor
    level: Tensor
    drop: Tensor
    spread: Tensor


def _run(
    grad_states: Tensor,
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    walks: list[Walk],
    card: Card,
    grad_state: Tensor | None,
    grad_seed: Tensor,
    grad_psi: Sequence[Tensor],
    grad_mu: Tensor,
    grad_beta: Tensor,
) -> None:
    B, K, N = seed.shape
    T = len(walks)
    every = grad_states.shape[0] == T
    first = seed if state is None else state
    pad = max(walk.launch.pad for walk in walks)
    layout = Layout.of(seed, psi, pad)
    products = walks[0].value_products
    shape = dict(KC=layout.KC, KP=layout.KP, PAD=layout.PAD)
    start = prepare_state(state, seed, products, layout)
    streamed = _streamed(start, products, layout, seed)

    g = start.y  # y⁰ in fp32 is not needed here: its buffer becomes the gradient's
    seed_sum = start.seed  # likewise
    most_blocks = layout.n_pad // min(16, min(walk.launch.cols for walk in walks))
    gradient = Gradient(
        g, torch.empty((B, most_blocks), dtype=torch.float32, device=seed.device), layout.n_pad // layout.block
    )
    launch("gradient_begin", gradient_begin_kernel, B * gradient.reaches, grad_states[-1], *grad_states[-1].stride(), g,
           start.scale, gradient.reach, N, K, layout.units, layout.chunks, **shape, R=layout.block,
           AXIS=contiguous_axis(grad_states[-1]))  # fmt: skip
    # every walk may use another column tile, hence another number of blocks: one array of parts for each
    gates = [
        torch.empty((B * (layout.n_pad // w.launch.cols), 2), dtype=torch.float32, device=seed.device) for w in walks
    ]
    for t in reversed(range(T)):
        walk = walks[t]
        prepared = prepare_psi(psi[t], walk, layout)
        R = walk.launch.cols
        launch("gradient_prepare", gradient_prepare_kernel, B * (layout.n_pad // R), gradient.g, gradient.reach,
               start.scale,
               mu, beta, walked, row_lse, prepared.bias, seed, *seed.stride(), first, *first.stride(),
               streamed.y_hi, streamed.y_lo, streamed.h_hi, streamed.h_lo, streamed.h_scale, streamed.lse,
               streamed.level,
               streamed.drop, streamed.spread, seed_sum, gates[t], N, K, layout.units, layout.chunks, B, t,
               gradient.reaches, T,
               **shape, R=R, VALUE_PRODUCTS=products, SEED_AXIS=contiguous_axis(seed), STATE_AXIS=contiguous_axis(first),
               warps=8 if layout.KP * R > 4096 or layout.KP > 64 else 4)  # fmt: skip
        added = grad_states[t - 1] if every and t > 0 else None
        walk_backward(walk, card, layout, prepared, start, streamed, gradient, added, grad_psi[t], seed)
        launch("gate_reduce", gate_reduce_kernel, 1, gates[t], grad_mu, grad_beta, gates[t].shape[0], t, R=256)
    result = grad_seed if grad_state is None else grad_state
    launch("gradient_end", gradient_end_kernel, B * layout.chunks * (layout.n_pad // layout.block), g, seed_sum,
           grad_seed,
           *grad_seed.stride(), result, *result.stride(), N, K, layout.units, layout.chunks, **shape, R=layout.block,
           HAS_STATE=grad_state is not None, SEED_AXIS=contiguous_axis(grad_seed),
           STATE_AXIS=contiguous_axis(result))  # fmt: skip


def _streamed(start: PreparedState, products: int, layout: Layout, seed: Tensor) -> Streamed:
    h_hi = torch.empty_like(start.hi)
    h_lo = torch.empty_like(h_hi) if products == 3 else h_hi
    h_scale = torch.empty((layout.batch,), dtype=torch.float32, device=seed.device)
    spread = torch.empty((layout.batch, layout.n_pad // 16, 2), dtype=torch.float32, device=seed.device)
    return Streamed(
        start.hi, start.lo, h_hi, h_lo, h_scale, layout.vector(seed), layout.vector(seed), layout.vector(seed), spread
    )


def walk_backward(
    walk: Walk,
    card: Card,
    layout: Layout,
    psi: PreparedPsi,
    start: PreparedState,
    streamed: Streamed,
    gradient: Gradient,
    added: Tensor | None,
    grad_psi: Tensor,
    seed: Tensor,
) -> None:
    """One step of B3-B6: writes grad_psi, turns gradient.g from (1-β) g into ∂L/∂yᵗ and leaves its reach."""
    B, K, N = seed.shape
    D, tiles, chunks = grad_psi.shape[1], walk.launch, layout.chunks
    columns, row_tiles = triton.cdiv(N, tiles.cols), triton.cdiv(N, tiles.rows)
    # no program adds parts here: two more accumulators beside its own would not fit the registers
    plan = split_plan.split(B, row_tiles * chunks, columns, card.processors, in_registers=False)
    fused = plan.parts == 1 and chunks == 1 and tiles.fused
    part_psi = part_moved = part_against = part_own = gradient.reach  # not touched when fused
    if not fused:
        part_psi = torch.empty((plan.parts, B, layout.n_pad, walk.DP), dtype=torch.float32, device=seed.device)
        part_against = torch.empty((plan.parts, B, layout.n_pad), dtype=torch.float32, device=seed.device)
        part_own = torch.empty_like(part_against)
        part_moved = torch.empty(
            (plan.parts, B, chunks, layout.n_pad, layout.KP), dtype=torch.float32, device=seed.device
        )
    given = gradient.reach if added is None else added
    given_strides = (0, 0, 0) if added is None else added.stride()
    shape = dict(DP=walk.DP, KC=layout.KC, KP=layout.KP, PAD=layout.PAD, LOGIT_PRODUCTS=walk.logit_products,
                 VALUE_PRODUCTS=walk.value_products, PSI_AXIS=contiguous_axis(grad_psi),
                 GRAD_AXIS=0 if added is None else contiguous_axis(added))  # fmt: skip

    def run(want_psi: bool, want_moved: bool, program_chunks: int) -> None:
        launch("walk_backward", walk_backward_kernel, B * row_tiles * program_chunks * plan.parts,
               psi.hi, psi.lo, psi.bias, psi.factor, psi.centre, streamed.y_hi, streamed.y_lo, streamed.h_hi,
               streamed.h_lo,
               streamed.lse, streamed.level, streamed.drop, streamed.spread, start.scale, streamed.h_scale,
               gradient.g, gradient.reach,
               given, *given_strides, grad_psi, *grad_psi.stride(), part_psi, part_moved,
               part_against, part_own, N, D, K, layout.units, chunks, program_chunks, plan.parts,
               plan.part_tiles, B,
               int(added is not None), **shape,
               I=tiles.rows, J=tiles.cols, WANT_PSI=want_psi, WANT_MOVED=want_moved,
               ONE_CHUNK=chunks == 1, FUSED=fused, warps=tiles.warps, stages=tiles.stages)  # fmt: skip

    if chunks == 1:
        run(True, True, 1)
    else:
        run(True, False, 1)
        run(False, True, chunks)
    gradient.reaches = row_tiles
    if not fused:
        R = min(16, layout.PAD)
        gradient.reaches = triton.cdiv(N, R)
        launch("walk_backward_combine", walk_backward_combine_kernel, B * gradient.reaches, part_psi, part_moved,
               part_against, part_own, psi.hi, psi.lo, streamed.y_hi, streamed.y_lo, streamed.h_hi, streamed.h_lo,
               psi.factor, psi.centre, start.scale, streamed.h_scale, gradient.g, gradient.reach,
               given, *given_strides, grad_psi, *grad_psi.stride(), N, D, K, layout.units, chunks, plan.parts, B,
               int(added is not None), **shape, R=R, warps=8 if walk.DP + layout.KP > 192 else 4)  # fmt: skip
