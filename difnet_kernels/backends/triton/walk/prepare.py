"""What a walk streams of ψ (B, D, N), any strides: node-major 16-bit rows, padded to whole tiles.

fp32 ψ is centred by c and scaled by κ = √log2(e)·2⁻ᵉ before it is split into hi and lo, so that

    log2(e)·S_ij = σ·(ψ̃_i·ψ̃_j) + bias_j + (a term of row i alone, which softmax ignores),   σ = 2²ᵉ, ψ̃ = κ (ψ - c).

bias_j holds what the centring leaves and log2(e)·b_j, the caller's bias of the column (W1b): the walks know one bias.

Any c and e are right; they decide the rounding. e brings the largest centred entry into [2¹³, 2¹⁴), whether ψ is huge or
tiny. c is, channel by channel, the median of the means of up to 16 groups of nodes: near the middle of the nodes, and no
single node can move it. The mean could be moved by one, and then every other node would carry the rounding of that
offset. 16-bit ψ is used as it is: c = 0, κ = 1, σ = log2(e). Rows past N hold zeros and a bias of -∞, so the walks need
no mask. Two passes, fixed order. A ψ of more than 256 channels has several slices of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import WEIGHT_SHIFT, field_tile, in_turn, last_to_arrive, low_of
from ..launch import contiguous_axis, kernel, launch, strides
from .plan import Layout, Walk, reduction_blocks

LOG2E = tl.constexpr(1.4426950408889634)
SQRT_LOG2E = tl.constexpr(1.2011224087864498)
# one outlier stays in one group of sixteen, whose median it cannot move
GROUPS = tl.constexpr(16)
# an image has outliers if its largest entry is so many times those of most groups
OUTLYING = tl.constexpr(32.0)
TOGETHER = 1 << 25  # bytes of prepared ψ: where launches cost more than the walks, all walks' are far less
# where a row's own column has no weight, its maximum starts below every logit
LOWEST = tl.constexpr(-3e38)


@triton.jit
def one_of(pointers, walk, WALKS: tl.constexpr):
    """The pointer of one walk, of a tuple of them."""
    chosen = pointers[0]
    for t in tl.static_range(1, WALKS):
        if walk == t:
            chosen = pointers[t]
    return chosen


@kernel
def psi_statistics_kernel(
    # pointers
    given_psi_ptrs,
    partial_ptr,
    centre_ptr,
    factor_ptr,
    counter_ptr,
    # sizes
    N,
    D,
    blocks,
    block_nodes,
    slices,
    batch,
    # strides
    psi_b: tl.int64,
    psi_d: tl.int64,
    psi_n: tl.int64,
    # constants
    DP: tl.constexpr,
    R: tl.constexpr,
    AXIS: tl.constexpr,
    WALKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """For c and e: sum, least and largest value of every channel over one block of nodes and one slice of channels.

    WALKS times ψ (B, D, N), in one tuple, -> partial [WALKS·B, blocks, 3, slices·DP]. The last program of an image turns them
    into centre [WALKS·B, slices·DP] and factor [WALKS·B, 4] = (σ, 1/κ, 1 if it has outliers, else 0; κ).
    """
    in_turn(PDL)
    program = tl.program_id(0).to(tl.int64)
    image = program // (blocks * slices)
    block = (program // slices) % blocks
    width = slices * DP
    begin = block * block_nodes
    end = tl.minimum(begin + block_nodes, N)
    d = (program % slices) * DP + tl.arange(0, DP)
    psi_ptr = one_of(given_psi_ptrs, image // batch, WALKS)
    total = tl.zeros([DP], tl.float32)
    low = tl.full([DP], float("inf"), tl.float32)
    high = tl.full([DP], float("-inf"), tl.float32)
    for step in range(0, block_nodes, R):
        n = begin + step + tl.arange(0, R)
        inside = (n[:, None] < end) & (d[None, :] < D)
        x = field_tile(psi_ptr, image % batch, psi_b, d, psi_d, n, psi_n, inside, AXIS)
        total += tl.sum(x, axis=0)
        low = tl.minimum(low, tl.min(tl.where(inside, x, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, x, float("-inf")), axis=0))
    of_image = partial_ptr + image * blocks * 3 * width
    out = of_image + block * 3 * width + d
    tl.store(out, total)
    tl.store(out + width, low)
    tl.store(out + 2 * width, high)
    if last_to_arrive(counter_ptr + image, blocks * slices):
        apart = tl.full([GROUPS], float("-inf"), tl.float32)
        for part in range(0, slices):
            channel = part * DP + tl.arange(0, DP)
            centre, its_apart = centre_of(of_image, N, blocks, block_nodes, width, channel, DP)
            tl.store(centre_ptr + image * width + channel, centre)
            apart = tl.maximum(apart, its_apart)
        reach = tl.maximum(tl.max(apart, axis=0), 0.0)
        ordinary = tl.sum((apart * OUTLYING >= reach).to(tl.int32), axis=0)
        used = tl.minimum(blocks, GROUPS)
        exponent = (((reach * SQRT_LOG2E).to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        shrink = tl.minimum(tl.maximum(exponent - 13, -113), 114)
        kappa = SQRT_LOG2E * ((127 - shrink) << 23).to(tl.float32, bitcast=True)
        # 2⁹⁰ at most: beyond it (logits above 10³⁵) the softmax is one-hot anyway, and an infinite logit would be a NaN;
        # 2⁻¹²⁶ at least, a normal number: logits are below 10⁻²⁹ there
        sigma = ((127 + tl.minimum(tl.maximum(2 * shrink, -126), 90)) << 23).to(tl.float32, bitcast=True)
        tl.store(factor_ptr + image * 4, sigma)
        tl.store(factor_ptr + image * 4 + 1, 1.0 / kappa)
        tl.store(factor_ptr + image * 4 + 2, tl.where(2 * ordinary < used, 1.0, 0.0))
        tl.store(factor_ptr + image * 4 + 3, kappa)


@triton.jit
def centre_of(partial_ptr, N, blocks, block_nodes, width, d, DP: tl.constexpr):
    """(c [DP] of the channels d, max |ψ - c| [GROUPS] of every group, -∞ without a node) of one image, from the blocks'
    partial [blocks, 3, width]; block b is in group b mod 16."""
    group = tl.arange(0, GROUPS)
    total = tl.zeros([GROUPS, DP], tl.float32)
    count = tl.zeros([GROUPS], tl.float32)
    low = tl.full([GROUPS, DP], float("inf"), tl.float32)
    high = tl.full([GROUPS, DP], float("-inf"), tl.float32)
    for first in range(0, blocks, GROUPS):
        block = first + group
        at = partial_ptr + block[:, None] * (3 * width) + d[None, :]
        inside = (block < blocks)[:, None]
        total += tl.load(at, mask=inside, other=0.0)
        low = tl.minimum(low, tl.load(at + width, mask=inside, other=float("inf")))
        high = tl.maximum(high, tl.load(at + 2 * width, mask=inside, other=float("-inf")))
        count += tl.minimum(tl.maximum(N - block * block_nodes, 0), block_nodes).to(tl.float32)
    mean = total / tl.maximum(count, 1.0)[:, None]
    used = (count > 0.0)[:, None]
    below = tl.zeros([GROUPS, DP], tl.int32)  # how many groups' means stand before this one's
    for other in range(0, GROUPS):
        its = tl.sum(tl.where(group[:, None] == other, mean, 0.0), axis=0)[None, :]
        before = (its < mean) | ((its == mean) & (other < group)[:, None])
        below += (before & (other * block_nodes < N)).to(tl.int32)
    middle = (tl.sum((count > 0.0).to(tl.int32), axis=0) - 1) // 2
    centre = tl.sum(tl.where(used & (below == middle), mean, 0.0), axis=0)
    apart = tl.max(tl.maximum(high - centre[None, :], centre[None, :] - low), axis=1)
    return centre, apart


@kernel
def psi_prepare_kernel(
    # pointers
    given_psi_ptrs,
    given_bias_ptrs,
    centre_ptr,
    factor_ptr,
    hi_ptr,
    lo_ptr,
    bias_ptr,
    floor_ptr,
    # sizes
    N,
    D,
    pad_units,
    slices,
    batch,
    # strides
    psi_b: tl.int64,
    psi_d: tl.int64,
    psi_n: tl.int64,
    given_b: tl.int64,
    given_n: tl.int64,
    # constants
    DP: tl.constexpr,
    PAD: tl.constexpr,
    R: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    LOGIT_PRODUCTS: tl.constexpr,
    SHIFT: tl.constexpr,
    AXIS: tl.constexpr,
    WALKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """ψ̃ = κ (ψ - c) of R nodes: WALKS times ψ (B, D, N), in one tuple, -> hi, lo [WALKS·B, n_pad, slices·DP],
    bias = σκ ψ̃·c + log2(e) b and floor [WALKS·B, n_pad].

    floor_i is just below row i's own logit (minus the softmax shift), so a walk starts with the maximum that its diagonal
    tile would find, in whichever part of the columns it works. Without CENTRED an image's first block writes what
    `psi_statistics_kernel` would, for c = 0.
    """
    in_turn(PDL)
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = (program % row_blocks) * R + tl.arange(0, R)
    width = slices * DP
    to_row = image * n_pad + n
    psi_ptr = one_of(given_psi_ptrs, image // batch, WALKS)
    if CENTRED:
        sigma = tl.load(factor_ptr + image * 4)
        kappa = tl.load(factor_ptr + image * 4 + 3)
    else:
        sigma = LOG2E
        kappa = 1.0
    bias = tl.zeros([R], tl.float32)
    own = tl.zeros([R], tl.float32)
    for part in range(0, slices):
        d = part * DP + tl.arange(0, DP)
        inside = (n[:, None] < N) & (d[None, :] < D)
        scaled = field_tile(psi_ptr, image % batch, psi_b, d, psi_d, n, psi_n, inside, AXIS)
        if CENTRED:
            centre = tl.load(centre_ptr + image * width + d)
            scaled = tl.where(inside, (scaled - centre[None, :]) * kappa, 0.0)
            bias += tl.sum(scaled * centre[None, :], axis=1)
        elif program % row_blocks == 0:
            tl.store(centre_ptr + image * width + d, tl.zeros([DP], tl.float32))
        hi = scaled.to(hi_ptr.dtype.element_ty)
        # the logit of what is multiplied: a floor above the row's maximum would leave no weight that fp16 can hold
        used = scaled if LOGIT_PRODUCTS == 3 else hi.to(tl.float32)
        own += tl.sum(used * used, axis=1)
        tl.store(hi_ptr + to_row[:, None] * width + d[None, :], hi)
        if LOGIT_PRODUCTS == 3:
            tl.store(lo_ptr + to_row[:, None] * width + d[None, :], low_of(scaled, hi))
    bias *= sigma * kappa
    own *= sigma
    if HAS_BIAS:
        bias_of_walk = one_of(given_bias_ptrs, image // batch, WALKS)
        given = tl.load(bias_of_walk + (image % batch) * given_b + n * given_n, mask=n < N, other=0.0)
        bias += LOG2E * given.to(tl.float32)  # (W1b)
    floor = own + bias - (own + tl.abs(bias)) * 0.0001220703125 - 1.0 - SHIFT
    if HAS_BIAS:
        floor = tl.where(bias == float("-inf"), LOWEST, floor)
    tl.store(bias_ptr + to_row, tl.where(n < N, bias, float("-inf")))
    tl.store(floor_ptr + to_row, tl.where(n < N, floor, 0.0))
    if not CENTRED and program % row_blocks == 0:
        tl.store(factor_ptr + image * 4, sigma)
        tl.store(factor_ptr + image * 4 + 1, 1.0)
        tl.store(factor_ptr + image * 4 + 2, 0.0)


def psi_blocks(nodes: int) -> tuple[int, int]:
    """As `reduction_blocks`, but at least 16 blocks where there are so many nodes: groups for the centre."""
    return reduction_blocks(nodes) if nodes > 64 * 16 else (-(-nodes // -(-nodes // 16)), -(-nodes // 16))


@dataclass(frozen=True)
class PreparedPsi:
    """hi, lo [B, n_pad, width] (lo is hi with one product), bias and floor [B, n_pad], centre [B, width], factor [B, 4]."""

    hi: Tensor
    lo: Tensor
    bias: Tensor
    floor: Tensor
    centre: Tensor
    factor: Tensor


def alike(
    psi: Sequence[Tensor], bias: Sequence[Tensor | None], walks: Sequence[Walk], layout: Layout, first: int
) -> list[range]:
    """Runs of walks, from `first` on, that one launch prepares: alike in all but their numbers, and within TOGETHER bytes."""

    def kind(t: int) -> tuple[object, ...]:
        b = bias[t]
        return walks[t], psi[t].dtype, psi[t].shape, psi[t].stride(), None if b is None else (b.dtype, b.stride())

    runs: list[range] = []
    for t in range(first, len(psi)):
        size = layout.batch * layout.n_pad * walks[t].width * (4 if walks[t].logit_products == 3 else 2)
        if runs and kind(t) == kind(t - 1) and (len(runs[-1]) + 1) * size <= TOGETHER:
            runs[-1] = range(runs[-1].start, t + 1)
        else:
            runs.append(range(t, t + 1))
    return runs


def each_prepared(
    psi: Sequence[Tensor],
    bias: Sequence[Tensor | None],
    walks: Sequence[Walk],
    layout: Layout,
    counters: Tensor,
    *,
    first: int = 0,
    backwards: bool = False,
) -> Iterator[tuple[int, PreparedPsi]]:
    """(t, ψ of walk t) from `first` to the last, or the other way round. counters: `prepare_psi`."""
    step = -1 if backwards else 1
    for run in alike(psi, bias, walks, layout, first)[::step]:
        ready = prepare_psi(psi[run.start : run.stop], bias[run.start : run.stop], walks[run.start], layout, counters)
        for t in run[::step]:
            yield t, ready[t - run.start]


def prepare_psi(
    psi: Sequence[Tensor], bias: Sequence[Tensor | None], walk: Walk, layout: Layout, counters: Tensor
) -> list[PreparedPsi]:
    """Of walks that are alike; bias (B, N), any strides, or None; counters: at least one zero for every image of
    every walk, and zeros again when this is done."""
    T, (B, D, N), first = len(psi), psi[0].shape, psi[0]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((T, B, *shape), dtype=dtype, device=first.device)

    hi = empty(layout.n_pad, walk.width, dtype=walk.operand)
    lo = torch.empty_like(hi) if walk.logit_products == 3 else hi
    out = PreparedPsi(hi, lo, empty(layout.n_pad), empty(layout.n_pad), empty(walk.width), empty(4))
    R = min(32, layout.PAD)
    warps = 8 if walk.DP > 64 else 4
    common = dict(given_psi_ptrs=tuple(psi), centre_ptr=out.centre, factor_ptr=out.factor, WALKS=T)
    common |= dict(N=N, D=D, slices=walk.slices, batch=B, DP=walk.DP, R=R, AXIS=contiguous_axis(first))
    common |= strides("psi", "bdn", first)
    if walk.centred:
        blocks, block_nodes = psi_blocks(N)
        partial = empty(blocks, 3, walk.width)
        launch(
            "psi statistics",
            psi_statistics_kernel,
            T * B * blocks * walk.slices,
            common | dict(partial_ptr=partial, counter_ptr=counters, blocks=blocks, block_nodes=block_nodes),
            warps=warps,
            of=walk.operand,
        )
    given = tuple(b for b in bias if b is not None) or (first,)  # all walks have one, or none; not touched then
    launch(
        "psi preparation",
        psi_prepare_kernel,
        T * B * (layout.n_pad // R),
        common | dict(given_bias_ptrs=given, pad_units=layout.units),
        dict(hi_ptr=out.hi, lo_ptr=out.lo, bias_ptr=out.bias, floor_ptr=out.floor),
        dict(given_b=0, given_n=0) if bias[0] is None else strides("given", "bn", bias[0]),
        dict(HAS_BIAS=bias[0] is not None, PAD=layout.PAD, CENTRED=walk.centred, SHIFT=WEIGHT_SHIFT.value),
        dict(LOGIT_PRODUCTS=walk.logit_products),
        warps=warps,
        of=walk.operand,
    )
    each = zip(*(getattr(out, field.name).unbind() for field in fields(out)), strict=True)
    return [PreparedPsi(*of_walk) for of_walk in each]
