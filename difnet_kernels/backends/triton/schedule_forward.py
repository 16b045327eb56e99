"""The cascade forward: prepare the state once, then per walk prepare ψ, walk, and combine where a row has several programs.

Everything between two walks stays in fp32; what the walks stream is padded, node-major and 16-bit. All buffers come
from torch's allocator on the current stream and nothing waits for the device, so the whole cascade can be captured in
a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import split_plan
from .plan import (
    INTERPRETED,
    SHIFT,
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
from .state_prepare import state_store_kernel
from .walk_forward import walk_forward_combine_kernel, walk_forward_kernel


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Tensor,
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    """W1-W5 into preallocated outputs. state (B, K, N) or None (then y⁰ = seed); psi: T tensors (B, D_t, N); any
    strides.

    states (S, B, K, N) takes every step when S = T,
    else the last. row_lse is private to this backend's backward: log2 units,
    of the logits without the row terms that softmax ignores.
    """
    card = card_of(seed.device)
    walks = plan_walks("forward", psi, seed, precision, card)
    with on_device(seed):
        if not INTERPRETED:
            _run(state, seed, psi, mu, beta, walks, card, states, walked, row_lse)
            return
        inputs = [x for x in (state, seed, *psi) if x is not None]
        with fp32_for_interpreter(inputs, [states]) as fp32:
            _run(fp32(state), fp32(seed), [fp32(p) for p in psi], mu, beta, walks, card, fp32(states), walked, row_lse)


def _run(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walks: list[Walk],
    card: Card,
    states: Tensor,
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    layout = Layout.of(seed, psi, max(walk.launch.pad for walk in walks))
    now = prepare_state(state, seed, walks[0].value_products, layout)
    # zeros: the row tiles of a walk may end before the padding does, and 0 · (what was in the memory) can be NaN
    spare_hi = torch.zeros_like(now.hi)
    spare_lo = torch.zeros_like(now.lo) if now.lo is not now.hi else spare_hi
    for t, walk in enumerate(walks):
        after = PreparedState(now.y, now.seed, spare_hi, spare_lo, now.scale)
        walk_forward(
            t, walk, card, layout, prepare_psi(psi[t], walk, layout), now, after, seed, mu, beta, walked, row_lse
        )
        if states.shape[0] == len(walks) or t == len(walks) - 1:
            out = states[min(t, states.shape[0] - 1)]
            programs = seed.shape[0] * layout.chunks * (layout.n_pad // layout.block)
            launch("state_store", state_store_kernel, programs, now.y, out, *out.stride(), seed.shape[2],
                   seed.shape[1], layout.units, layout.chunks, KC=layout.KC,
                   KP=layout.KP, PAD=layout.PAD, R=layout.block,
                   AXIS=contiguous_axis(out))  # fmt: skip
        now, spare_hi, spare_lo = after, now.hi, now.lo


def walk_forward(
    t: int,
    walk: Walk,
    card: Card,
    layout: Layout,
    psi: PreparedPsi,
    now: PreparedState,
    after: PreparedState,
    seed: Tensor,
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    """Step t: reads the halves of `now`, writes the halves of `after` (other buffers) and the fp32 state in place."""
    B, K, N = seed.shape
    tiles = walk.launch
    columns = triton.cdiv(N, tiles.cols)
    row_tiles = layout.chunks * triton.cdiv(N, tiles.rows)
    plan = split_plan.split(B, row_tiles, columns, card.processors, in_registers=tiles.fused)
    programs = B * row_tiles * (1 if plan.together else plan.parts)
    part, part_peak = row_lse, row_lse  # not touched when together
    if not plan.together:
        part = torch.empty((plan.parts, *now.y.shape), dtype=torch.float32, device=seed.device)
        part_peak = torch.empty(part.shape[:-1], dtype=torch.float32, device=seed.device)
    finish = (now.scale, now.y, after.hi, after.lo, now.seed, mu, beta, walked, row_lse)
    shape: dict[str, Any] = dict(
        KC=layout.KC, KP=layout.KP, PAD=layout.PAD, VALUE_PRODUCTS=walk.value_products, SHIFT=SHIFT
    )
    launch("walk_forward", walk_forward_kernel, programs, psi.hi, psi.lo, psi.bias, psi.floor, psi.factor, now.hi, now.lo,
           *finish, part, part_peak, N, K, layout.units, layout.chunks, plan.parts, plan.part_tiles, B, t,
           **shape, DP=walk.DP, I=tiles.rows, J=tiles.cols, LOGIT_PRODUCTS=walk.logit_products,
           FUSED=plan.together, warps=tiles.warps, stages=tiles.stages)  # fmt: skip
    if not plan.together:
        R = min(16 if layout.KP > 64 else 32, layout.PAD)
        launch("walk_forward_combine", walk_forward_combine_kernel, B * layout.chunks * triton.cdiv(N, R), *finish,
               part, part_peak, N, K, layout.units, layout.chunks, plan.parts, B, t, **shape, R=R)  # fmt: skip
