"""The two preparations that forward and backward share: ψ of one walk, and the first state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .plan import SHIFT, Layout, Walk, contiguous_axis, launch
from .psi_prepare import psi_prepare_kernel, psi_statistics_kernel
from .state_prepare import class_reach_kernel, state_prepare_kernel


def reduction_blocks(nodes: int) -> tuple[int, int]:
    """(blocks, nodes per block) of a two-step reduction. Depends on the nodes alone: an image gives the same bits in
    any batch."""
    per_block = max(64, triton.cdiv(nodes, 64 * 64) * 64)
    return triton.cdiv(nodes, per_block), per_block


@dataclass(frozen=True)
class PreparedPsi:
    """hi, lo [B, n_pad, DP] (lo is hi with one product), bias and floor [B, n_pad], centre [B, DP], factor [B, 2]."""

    hi: Tensor
    lo: Tensor
    bias: Tensor
    floor: Tensor
    centre: Tensor
    factor: Tensor


def prepare_psi(psi: Tensor, walk: Walk, layout: Layout) -> PreparedPsi:
    B, D, N = psi.shape
    DP = walk.DP

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=psi.device)

    hi = empty(B, layout.n_pad, DP, dtype=walk.operand)
    lo = torch.empty_like(hi) if walk.logit_products == 3 else hi
    out = PreparedPsi(hi, lo, layout.vector(psi), layout.vector(psi), empty(B, DP), empty(B, 2))
    blocks, block_nodes = reduction_blocks(N)
    R = min(32, layout.PAD)
    warps = 8 if DP > 64 else 4
    axis = contiguous_axis(psi)
    partial = empty(B, blocks, 3, DP) if walk.centred else out.factor
    if walk.centred:
        launch("psi statistics", psi_statistics_kernel, B * blocks, psi, *psi.stride(), partial, N, D, blocks,
               block_nodes,
               DP=DP, R=R, AXIS=axis, warps=warps)  # fmt: skip
    launch("psi preparation", psi_prepare_kernel, B * (layout.n_pad // R), psi, *psi.stride(), partial,
           out.hi, out.lo, out.bias, out.floor, out.centre, out.factor, N, D, blocks, layout.units,
           DP=DP, PAD=layout.PAD, R=R, CENTRED=walk.centred, LOGIT_PRODUCTS=walk.logit_products, SHIFT=SHIFT,
           AXIS=axis, warps=warps)  # fmt: skip
    return out


@dataclass(frozen=True)
class PreparedState:
    """y and the seed in fp32, the halves of y [B, C, n_pad, KP] (lo is hi with one product), the power-of-two scale
    [B, C, KP]."""

    y: Tensor
    seed: Tensor
    hi: Tensor
    lo: Tensor
    scale: Tensor


def prepare_state(state: Tensor | None, seed: Tensor, value_products: int, layout: Layout) -> PreparedState:
    B, K, N = seed.shape
    source = seed if state is None else state
    hi = layout.columns(seed, torch.float16)
    lo = torch.empty_like(hi) if value_products == 3 else hi
    scale = torch.empty((B, layout.chunks, layout.KP), dtype=torch.float32, device=seed.device)
    out = PreparedState(layout.columns(seed, torch.float32), layout.columns(seed, torch.float32), hi, lo, scale)
    blocks, block_nodes = reduction_blocks(N)
    R = layout.block
    axes = dict(SEED_AXIS=contiguous_axis(seed), STATE_AXIS=contiguous_axis(source))
    partial = torch.empty((B, layout.chunks, blocks, layout.KP), dtype=torch.float32, device=seed.device)
    launch("class scales", class_reach_kernel, B * layout.chunks * blocks, seed, *seed.stride(), source,
           *source.stride(),
           partial, N, K, blocks, block_nodes, layout.chunks, KC=layout.KC, KP=layout.KP, R=R,
           HAS_STATE=state is not None, **axes)  # fmt: skip
    launch("state preparation", state_prepare_kernel, B * layout.chunks * (layout.n_pad // R), source,
           *source.stride(), seed, *seed.stride(), partial, out.y, out.seed, out.hi, out.lo, out.scale, N, K, blocks,
           layout.units, layout.chunks, KC=layout.KC, KP=layout.KP, PAD=layout.PAD, R=R,
           VALUE_PRODUCTS=value_products, **axes)  # fmt: skip
    return out
