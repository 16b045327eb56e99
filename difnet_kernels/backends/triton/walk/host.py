"""The cascade forward: from tensors to launches. Its backward: `host_backward`.

The state is prepared once, ψ of all walks together where they are alike, then the walks run. Everything between two walks
stays in fp32; what the walks stream is padded, node-major and 16-bit. All buffers come from torch's allocator on the current
stream and nothing waits for the device, so both directions can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import split
from ..arithmetic import WEIGHT_SHIFT
from ..launch import Card, card_of, ceil_div, contiguous_axis, launch, on_device, strides
from .forward import state_store_kernel, walk_forward_kernel
from .lse import write_lse
from .plan import Layout, Walk, plan_walks
from .prepare import PreparedPsi, each_prepared
from .state import PreparedState, prepare_state


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Sequence[Tensor],
    walked: Tensor | None,
    row_lse: Tensor | None,
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
) -> None:
    """W1-W5 into preallocated outputs. state (B, K, N) or None (then y⁰ = seed); psi: T tensors (B, D_t, N); bias: T tensors
    (B, N), of which some may be None, or nothing; any strides.

    states, S tensors (B, K, N), take every step when S = T, else the last. walked and row_lse are for this backend's
    backward; without one they hold one walk, or are None. row_lse is private to it: log2 units, of the logits without
    the row terms that softmax ignores. lse, T tensors (B, N) or none, is for the caller: natural units, all terms.
    """
    bias = bias or [None] * len(psi)
    card = card_of(seed.device)
    walks = plan_walks("forward", psi, seed, precision, card)
    layout = Layout.of(seed, max(walk.launch.pad for walk in walks))
    with on_device(seed):
        counters = seed.new_empty(most_row_tiles(walks, layout), dtype=torch.int32)
        now, after = prepare_state(state, seed, walks[0].value_products, layout, counters)
        keep = walked is not None and walked.shape[0] == len(walks)  # else one walk's, overwritten by the next
        if walked is None or row_lse is None:
            walked = seed.new_empty((1, layout.batch, layout.nodes, layout.classes), dtype=torch.float32)
            row_lse = seed.new_empty((1, layout.batch, layout.nodes), dtype=torch.float32)
        gates = dict(given_mu_ptr=mu, given_beta_ptr=beta, walked_ptr=walked, lse_ptr=row_lse)
        for t, prepared in each_prepared(psi, bias, walks, layout, counters):
            walk, kept = walks[t], t if keep else 0
            walk_forward(t, kept, walk, card, layout, prepared, now, after, gates | dict(counter_ptr=counters))
            if lse:
                write_lse(row_lse[kept], psi[t], prepared, walk, layout, lse[t])
            if len(states) == len(walks) or t == len(walks) - 1:
                write_state(now.y, states[min(t, len(states) - 1)], layout)
            now, after = after, now


def most_row_tiles(walks: Sequence[Walk], layout: Layout) -> int:
    """Of all images and chunks, in the walk that has the most, or one for each image of each walk: so many counters are
    needed."""
    tiles = layout.chunks * max(ceil_div(layout.nodes, walk.launch.rows) for walk in walks)
    return layout.batch * max(tiles, len(walks))


def walk_forward(
    t: int,
    kept: int,
    walk: Walk,
    card: Card,
    layout: Layout,
    psi: PreparedPsi,
    now: PreparedState,
    after: PreparedState,
    more: dict[str, Tensor],
) -> None:
    """Step t: reads hi and lo of `now`, writes those of `after` (other buffers), the fp32 state in place, and walk `kept`
    of walked and row_lse. more: the gates, those two, and the counters, by name."""
    B, N, tiles = layout.batch, layout.nodes, walk.launch
    columns = ceil_div(N, tiles.cols)
    row_tiles = layout.chunks * ceil_div(N, tiles.rows)
    plan = split.split_columns(B, row_tiles, columns, card.processors, in_registers=tiles.in_registers)
    part, part_peak = now.y, now.y  # not touched when one program has all parts
    if not plan.all_parts:
        part = torch.empty((plan.parts, *now.y.shape), dtype=torch.float32, device=now.y.device)
        part_peak = torch.empty(part.shape[:-1], dtype=torch.float32, device=now.y.device)
    pointers = dict(scale_ptr=now.scale, state_ptr=now.y, next_hi_ptr=after.hi, next_lo_ptr=after.lo, seed_ptr=now.seed)
    pointers |= more | dict(part_ptr=part, part_peak_ptr=part_peak)
    launch(
        "walk_forward",
        walk_forward_kernel,
        B * row_tiles * (1 if plan.all_parts else plan.parts),
        dict(psi_hi_ptr=psi.hi, psi_lo_ptr=psi.lo, bias_ptr=psi.bias, floor_ptr=psi.floor, factor_ptr=psi.factor),
        dict(y_hi_ptr=now.hi, y_lo_ptr=now.lo),
        pointers,
        layout.sizes | walk.sizes,
        dict(parts=plan.parts, part_tiles=plan.part_tiles, batch=B, step=t, kept=kept),
        layout.constants | walk.constants,
        dict(I=tiles.rows, J=tiles.cols, VALUE_PRODUCTS=walk.value_products, SHIFT=WEIGHT_SHIFT.value),
        dict(ALL_PARTS=plan.all_parts),
        warps=tiles.warps,
        stages=tiles.stages,
        of=walk.operand,
    )


def write_state(y: Tensor, out: Tensor, layout: Layout) -> None:
    """y [B, C, n_pad, KP] into out (B, K, N)."""
    launch(
        "state_store",
        state_store_kernel,
        layout.batch * layout.chunks * (layout.n_pad // layout.block),
        dict(state_ptr=y, given_out_ptr=out),
        layout.sizes,
        strides("out", "bkn", out),
        layout.constants | dict(R=layout.block, AXIS=contiguous_axis(out)),
        of=torch.float32,
    )
