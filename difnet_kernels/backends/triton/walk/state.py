"""What a walk streams of y (B, K, N), any strides: node-major fp16 hi and lo, padded to whole tiles.

A chunk holds KC classes and a spare column of ones at KC (KP ≥ KC + 1 columns in all). y is scaled by a power of two
per image and class that brings |seed| and |y⁰| to at most 1: every later state is a convex combination of the two, so
one scale serves the whole cascade. Layouts: state [B, C, n_pad, KP] fp32, hi and lo likewise fp16, scale [B, C, KP].
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import class_columns, field_tile, in_turn, low_of, power_of_two_below
from ..launch import contiguous_axis, kernel, launch, strides
from .plan import Layout, reduction_blocks


@kernel
def class_reach_kernel(
    # pointers
    given_seed_ptr,
    given_state_ptr,
    partial_ptr,
    clear_ptr,
    # sizes
    N,
    K,
    KC,
    blocks,
    block_nodes,
    chunks,
    clear,
    # strides
    seed_b: tl.int64,
    seed_k: tl.int64,
    seed_n: tl.int64,
    state_b: tl.int64,
    state_k: tl.int64,
    state_n: tl.int64,
    # constants
    KP: tl.constexpr,
    R: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SEED_AXIS: tl.constexpr,
    STATE_AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """max(|seed|, |y⁰|) per class over one block of nodes: (B, K, N) -> partial [B, C, blocks, KP]. The first launch of a
    cascade: it writes `clear` zeros, too, for those that count and raise later."""
    in_turn(PDL)
    program = tl.program_id(0).to(tl.int64)
    for first in range(tl.program_id(0) * 256, clear, tl.num_programs(0) * 256):
        at = first + tl.arange(0, 256)
        tl.store(clear_ptr + at, 0, mask=at < clear)
    block = program % blocks
    chunk = (program // blocks) % chunks
    image = program // (blocks * chunks)
    column, label, is_class, _ = class_columns(chunk, K, KC, KP)
    begin = block * block_nodes
    end = tl.minimum(begin + block_nodes, N)
    reach = tl.zeros([KP], tl.float32)
    for step in range(0, block_nodes, R):
        n = begin + step + tl.arange(0, R)
        inside = (n[:, None] < end) & is_class[None, :]
        s = field_tile(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, inside, SEED_AXIS)
        reach = tl.maximum(reach, tl.max(tl.abs(s), axis=0))
        if HAS_STATE:
            y = field_tile(given_state_ptr, image, state_b, label, state_k, n, state_n, inside, STATE_AXIS)
            reach = tl.maximum(reach, tl.max(tl.abs(y), axis=0))
    tl.store(partial_ptr + program * KP + column, reach)


@triton.jit
def store_state(hi_ptr, lo_ptr, at, scaled, spare, VALUE_PRODUCTS: tl.constexpr):
    """hi and lo of a scaled state tile, with ones in the spare column (the row sum of P, and the 1 that meets -δ)."""
    scaled = tl.where(spare[None, :], 1.0, scaled)
    hi = scaled.to(tl.float16)
    tl.store(hi_ptr + at, hi)
    if VALUE_PRODUCTS == 3:
        tl.store(lo_ptr + at, low_of(scaled, hi))


@triton.jit
def scale_of(partial_ptr, at, blocks, column, KP: tl.constexpr):
    """The power of two [KP] that brings a chunk's classes to at most 1, from the blocks' reach [.., blocks, KP]."""
    reach = tl.zeros([KP], tl.float32)
    for block in range(0, blocks):
        reach = tl.maximum(reach, tl.load(partial_ptr + (at * blocks + block) * KP + column))
    return 0.5 / power_of_two_below(reach)


@kernel
def state_prepare_kernel(
    # pointers
    given_state_ptr,
    given_seed_ptr,
    partial_ptr,
    state_ptr,
    seed_ptr,
    hi_ptr,
    lo_ptr,
    next_hi_ptr,
    next_lo_ptr,
    scale_ptr,
    # sizes
    N,
    K,
    KC,
    blocks,
    pad_units,
    chunks,
    # strides
    seed_b: tl.int64,
    seed_k: tl.int64,
    seed_n: tl.int64,
    state_b: tl.int64,
    state_k: tl.int64,
    state_n: tl.int64,
    # constants
    KP: tl.constexpr,
    PAD: tl.constexpr,
    R: tl.constexpr,
    VALUE_PRODUCTS: tl.constexpr,
    SEED_AXIS: tl.constexpr,
    STATE_AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """y⁰ and s of R nodes: (B, K, N) -> state, seed [B, C, n_pad, KP] fp32, hi and lo of scale·y⁰.

    An image's first block writes scale [B, C, KP]. Of the next state's hi and lo the padding is cleared: a walk's row tiles may
    end before it, and 0 · (what was in the memory) can be NaN.
    """
    in_turn(PDL)
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    chunk = (program // row_blocks) % chunks
    image = program // (row_blocks * chunks)
    column, label, is_class, spare = class_columns(chunk, K, KC, KP)
    n = (program % row_blocks) * R + tl.arange(0, R)
    scale = scale_of(partial_ptr, image * chunks + chunk, blocks, column, KP)
    inside = (n[:, None] < N) & is_class[None, :]
    y = field_tile(given_state_ptr, image, state_b, label, state_k, n, state_n, inside, STATE_AXIS)
    to = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
    tl.store(state_ptr + to, y)
    s = field_tile(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, inside, SEED_AXIS)
    tl.store(seed_ptr + to, s)
    store_state(hi_ptr, lo_ptr, to, y * scale[None, :], spare, VALUE_PRODUCTS)
    nothing = tl.zeros([R, KP], tl.float16)
    tl.store(next_hi_ptr + to, nothing, mask=(n >= N)[:, None])
    if VALUE_PRODUCTS == 3:
        tl.store(next_lo_ptr + to, nothing, mask=(n >= N)[:, None])
    if program % row_blocks == 0:
        tl.store(scale_ptr + (image * chunks + chunk) * KP + column, scale)


@dataclass(frozen=True)
class PreparedState:
    """y and the seed in fp32, hi and lo of y [B, C, n_pad, KP] (lo is hi with one product), the power-of-two scale
    [B, C, KP]."""

    y: Tensor
    seed: Tensor
    hi: Tensor
    lo: Tensor
    scale: Tensor


def class_reach(state: Tensor | None, seed: Tensor, layout: Layout, cleared: Tensor) -> Tensor:
    """[B, C, blocks, KP], see `class_reach_kernel`; cleared: 32-bit numbers that will be zeros."""
    B, _, N = seed.shape
    first = seed if state is None else state
    blocks, block_nodes = reduction_blocks(N)
    partial = torch.empty((B, layout.chunks, blocks, layout.KP), dtype=torch.float32, device=seed.device)
    launch(
        "class scales",
        class_reach_kernel,
        B * layout.chunks * blocks,
        dict(given_seed_ptr=seed, given_state_ptr=first, partial_ptr=partial, clear_ptr=cleared, clear=cleared.numel()),
        dict(N=N, K=layout.classes, KC=layout.KC, chunks=layout.chunks, blocks=blocks, block_nodes=block_nodes),
        strides("seed", "bkn", seed) | strides("state", "bkn", first),
        dict(SEED_AXIS=contiguous_axis(seed), STATE_AXIS=contiguous_axis(first)),
        dict(KP=layout.KP, R=layout.block, HAS_STATE=state is not None),
        of=torch.float32,
    )
    return partial


def prepare_state(
    state: Tensor | None, seed: Tensor, value_products: int, layout: Layout, cleared: Tensor
) -> tuple[PreparedState, PreparedState]:
    """This state, and where the next one's hi and lo will stand; cleared: as for `class_reach`."""
    first = seed if state is None else state  # (W5)
    partial = class_reach(state, seed, layout, cleared)
    scale = torch.empty((layout.batch, layout.chunks, layout.KP), dtype=torch.float32, device=seed.device)
    y, s = (layout.columns(seed, torch.float32) for _ in range(2))

    def streamed() -> PreparedState:
        hi = layout.columns(seed, torch.float16)
        return PreparedState(y, s, hi, torch.empty_like(hi) if value_products == 3 else hi, scale)

    out, after = streamed(), streamed()
    launch(
        "state preparation",
        state_prepare_kernel,
        layout.batch * layout.chunks * (layout.n_pad // layout.block),
        dict(given_seed_ptr=seed, given_state_ptr=first, partial_ptr=partial, blocks=partial.shape[2]),
        dict(state_ptr=y, seed_ptr=s, hi_ptr=out.hi, lo_ptr=out.lo, scale_ptr=scale),
        dict(next_hi_ptr=after.hi, next_lo_ptr=after.lo),
        strides("seed", "bkn", seed) | strides("state", "bkn", first),
        dict(SEED_AXIS=contiguous_axis(seed), STATE_AXIS=contiguous_axis(first)),
        layout.sizes | layout.constants | dict(R=layout.block, VALUE_PRODUCTS=value_products),
        of=torch.float16,
    )
    return out, after
