"""What a walk streams of ψ (B, D, N), any strides: node-major 16-bit rows, padded to whole tiles.

fp32 ψ is centred by c and scaled by κ = √log2(e)·2⁻ᵉ before it is split into hi and lo, so that

    log2(e)·S_ij = σ·(ψ̃_i·ψ̃_j) + bias_j + (a term of row i alone, which softmax ignores),   σ = 2²ᵉ, ψ̃ = κ (ψ - c).

bias_j holds what the centring leaves and log2(e)·b_j, the caller's bias of the column (W1b): the walks know one bias.

Any c and e are right; they decide the rounding. e brings the largest centred entry into [2¹³, 2¹⁴), whether ψ is huge or
tiny. c is, channel by channel, the median of the means of up to 16 groups of nodes: near the middle of the nodes, and no
single node can move it. The mean could be moved by one, and then every other node would carry the rounding of that
offset. 16-bit ψ is used as it is: c = 0, κ = 1, σ = log2(e). Rows past N hold zeros and a bias of -∞, so the walks need
no mask. Two passes, fixed order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import WEIGHT_SHIFT, field_tile, low_of
from ..launch import contiguous_axis, kernel, launch, strides
from .plan import Layout, Walk, reduction_blocks

LOG2E = tl.constexpr(1.4426950408889634)
SQRT_LOG2E = tl.constexpr(1.2011224087864498)
# one outlier stays in one group of sixteen, whose median it cannot move
GROUPS = tl.constexpr(16)
# an image has outliers if its largest entry is so many times those of most groups
OUTLYING = tl.constexpr(32.0)
# where a row's own column has no weight, its maximum starts below every logit
LOWEST = tl.constexpr(-3e38)


@kernel
def psi_statistics_kernel(
    # pointers
    given_psi_ptr,
    partial_ptr,
    # sizes
    N,
    D,
    blocks,
    block_nodes,
    # strides
    psi_b: tl.int64,
    psi_d: tl.int64,
    psi_n: tl.int64,
    # constants
    DP: tl.constexpr,
    R: tl.constexpr,
    AXIS: tl.constexpr,
):
    """For c and e: sum, least and largest value of every channel over one block of nodes.

    ψ (B, D, N) -> partial [B, blocks, 3, DP].
    """
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    begin = (program % blocks) * block_nodes
    end = tl.minimum(begin + block_nodes, N)
    d = tl.arange(0, DP)
    total = tl.zeros([DP], tl.float32)
    low = tl.full([DP], float("inf"), tl.float32)
    high = tl.full([DP], float("-inf"), tl.float32)
    for step in range(0, block_nodes, R):
        n = begin + step + tl.arange(0, R)
        inside = (n[:, None] < end) & (d[None, :] < D)
        x = field_tile(given_psi_ptr, image, psi_b, d, psi_d, n, psi_n, inside, AXIS)
        total += tl.sum(x, axis=0)
        low = tl.minimum(low, tl.min(tl.where(inside, x, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, x, float("-inf")), axis=0))
    out = partial_ptr + program * 3 * DP + d
    tl.store(out, total)
    tl.store(out + DP, low)
    tl.store(out + 2 * DP, high)


@triton.jit
def centre_and_reach(partial_ptr, N, blocks, block_nodes, DP: tl.constexpr):
    """(c [DP], max |ψ - c|, whether one group's is far above the others') of one image, from the blocks' partial
    [blocks, 3, DP]; block b is in group b mod 16."""
    group = tl.arange(0, GROUPS)
    d = tl.arange(0, DP)
    total = tl.zeros([GROUPS, DP], tl.float32)
    count = tl.zeros([GROUPS], tl.float32)
    low = tl.full([GROUPS, DP], float("inf"), tl.float32)
    high = tl.full([GROUPS, DP], float("-inf"), tl.float32)
    for first in range(0, blocks, GROUPS):
        block = first + group
        at = partial_ptr + block[:, None] * (3 * DP) + d[None, :]
        inside = (block < blocks)[:, None]
        total += tl.load(at, mask=inside, other=0.0)
        low = tl.minimum(low, tl.load(at + DP, mask=inside, other=float("inf")))
        high = tl.maximum(high, tl.load(at + 2 * DP, mask=inside, other=float("-inf")))
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
    apart = tl.max(tl.maximum(high - centre[None, :], centre[None, :] - low), axis=1)  # [GROUPS], -∞ without a node
    reach = tl.maximum(tl.max(apart, axis=0), 0.0)
    ordinary = tl.sum((apart * OUTLYING >= reach).to(tl.int32), axis=0)
    return centre, reach, 2 * ordinary < tl.sum((count > 0.0).to(tl.int32), axis=0)


@kernel
def psi_prepare_kernel(
    # pointers
    given_psi_ptr,
    given_bias_ptr,
    partial_ptr,
    hi_ptr,
    lo_ptr,
    bias_ptr,
    floor_ptr,
    centre_ptr,
    factor_ptr,
    # sizes
    N,
    D,
    blocks,
    block_nodes,
    pad_units,
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
):
    """ψ̃ = κ (ψ - c) of R nodes: ψ (B, D, N) -> hi, lo [B, n_pad, DP], bias = σκ ψ̃·c + log2(e) b and floor [B, n_pad].

    An image's first block writes centre [B, DP] and factor [B, 3] = (σ, 1/κ, 1 if it has outliers, else 0). floor_i is
    just below row i's own logit (minus the softmax shift), so a walk starts with the maximum that its diagonal tile would
    find, in whichever part of the columns it works.
    """
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = (program % row_blocks) * R + tl.arange(0, R)
    d = tl.arange(0, DP)
    inside = (n[:, None] < N) & (d[None, :] < D)
    psi = field_tile(given_psi_ptr, image, psi_b, d, psi_d, n, psi_n, inside, AXIS)
    if CENTRED:
        at_image = partial_ptr + image * blocks * 3 * DP
        centre, reach, outlying = centre_and_reach(at_image, N, blocks, block_nodes, DP)
        exponent = (((reach * SQRT_LOG2E).to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        shrink = tl.minimum(tl.maximum(exponent - 13, -113), 114)
        kappa = SQRT_LOG2E * ((127 - shrink) << 23).to(tl.float32, bitcast=True)
        # 2⁹⁰ at most: beyond it (logits above 10³⁵) the softmax is one-hot anyway, and an infinite logit would be a NaN;
        # 2⁻¹²⁶ at least, a normal number: logits are below 10⁻²⁹ there
        sigma = ((127 + tl.minimum(tl.maximum(2 * shrink, -126), 90)) << 23).to(tl.float32, bitcast=True)
        scaled = tl.where(inside, (psi - centre[None, :]) * kappa, 0.0)
        bias = sigma * kappa * tl.sum(scaled * centre[None, :], axis=1)
    else:
        centre = tl.zeros([DP], tl.float32)
        outlying = False
        kappa = 1.0
        sigma = LOG2E
        scaled = psi
        bias = tl.zeros([R], tl.float32)
    hi = scaled.to(hi_ptr.dtype.element_ty)
    # the logit of what is multiplied: a floor above the row's maximum would leave no weight that fp16 can hold
    used = scaled if LOGIT_PRODUCTS == 3 else hi.to(tl.float32)
    own = sigma * tl.sum(used * used, axis=1)
    if HAS_BIAS:
        given = tl.load(given_bias_ptr + image * given_b + n * given_n, mask=n < N, other=0.0)
        bias += LOG2E * given.to(tl.float32)  # (W1b)
    floor = own + bias - (own + tl.abs(bias)) * 0.0001220703125 - 1.0 - SHIFT
    if HAS_BIAS:
        floor = tl.where(bias == float("-inf"), LOWEST, floor)
    to_row = image * n_pad + n
    tl.store(hi_ptr + to_row[:, None] * DP + d[None, :], hi)
    if LOGIT_PRODUCTS == 3:
        tl.store(lo_ptr + to_row[:, None] * DP + d[None, :], low_of(scaled, hi))
    tl.store(bias_ptr + to_row, tl.where(n < N, bias, float("-inf")))
    tl.store(floor_ptr + to_row, tl.where(n < N, floor, 0.0))
    if program % row_blocks == 0:
        tl.store(centre_ptr + image * DP + d, centre)
        tl.store(factor_ptr + image * 3, sigma)
        tl.store(factor_ptr + image * 3 + 1, 1.0 / kappa)
        tl.store(factor_ptr + image * 3 + 2, tl.where(outlying, 1.0, 0.0))


def psi_blocks(nodes: int) -> tuple[int, int]:
    """As `reduction_blocks`, but at least 16 blocks where there are so many nodes: groups for the centre."""
    return reduction_blocks(nodes) if nodes > 64 * 16 else (-(-nodes // -(-nodes // 16)), -(-nodes // 16))


@dataclass(frozen=True)
class PreparedPsi:
    """hi, lo [B, n_pad, DP] (lo is hi with one product), bias and floor [B, n_pad], centre [B, DP], factor [B, 3]."""

    hi: Tensor
    lo: Tensor
    bias: Tensor
    floor: Tensor
    centre: Tensor
    factor: Tensor


def prepare_psi(psi: Tensor, bias: Tensor | None, walk: Walk, layout: Layout) -> PreparedPsi:
    """bias (B, N), any strides, or None."""
    B, D, N = psi.shape
    DP = walk.DP

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=psi.device)

    hi = empty(B, layout.n_pad, DP, dtype=walk.operand)
    lo = torch.empty_like(hi) if walk.logit_products == 3 else hi
    out = PreparedPsi(hi, lo, layout.vector(psi), layout.vector(psi), empty(B, DP), empty(B, 3))
    blocks, block_nodes = psi_blocks(N)
    R = min(32, layout.PAD)
    warps = 8 if DP > 64 else 4
    shape = dict(DP=DP, R=R, AXIS=contiguous_axis(psi))
    partial = empty(B, blocks, 3, DP) if walk.centred else out.factor
    if walk.centred:
        launch(
            "psi statistics",
            psi_statistics_kernel,
            B * blocks,
            dict(given_psi_ptr=psi, partial_ptr=partial),
            dict(N=N, D=D, blocks=blocks, block_nodes=block_nodes),
            strides("psi", "bdn", psi),
            shape,
            warps=warps,
        )
    launch(
        "psi preparation",
        psi_prepare_kernel,
        B * (layout.n_pad // R),
        dict(given_psi_ptr=psi, given_bias_ptr=psi if bias is None else bias, partial_ptr=partial),
        dict(hi_ptr=out.hi, lo_ptr=out.lo, bias_ptr=out.bias, floor_ptr=out.floor),
        dict(centre_ptr=out.centre, factor_ptr=out.factor),
        dict(N=N, D=D, blocks=blocks, block_nodes=block_nodes, pad_units=layout.units),
        strides("psi", "bdn", psi),
        dict(given_b=0, given_n=0) if bias is None else strides("given", "bn", bias),
        shape,
        dict(HAS_BIAS=bias is not None),
        dict(PAD=layout.PAD, CENTRED=walk.centred, LOGIT_PRODUCTS=walk.logit_products, SHIFT=WEIGHT_SHIFT.value),
        warps=warps,
    )
    return out
