"""ψ (B, D, N), any strides -> what the walks stream: node-major 16-bit rows, one fp32 bias per node.

fp32 ψ is centred by c = mean ψ and scaled by κ = √log2(e)·2⁻ᵉ before it is split into fp16 halves, so that

    log2(e)·S_ij = σ·(ψ̃_i·ψ̃_j) + bias_j + (a term of row i alone, which softmax ignores),   σ = 2²ᵉ, ψ̃ = κ (ψ - c).

e is 0 until a centred entry passes 2¹⁴ and then keeps fp16 in range. 16-bit ψ is used as it is: c = 0, κ = 1, σ =
log2(e). Rows past N hold zeros and a bias of -∞, so the walks need no mask. Two passes, fixed order, no atomics.
"""

import triton
import triton.language as tl

from .arithmetic import field_at, low_half

# sizes, strides and the caller's pointer: a new value must not compile a new kernel
_PLAIN = ["psi_ptr", "N", "D", "blocks", "block_nodes", "pad_units", "stride_b", "stride_d", "stride_n"]
LOG2E = tl.constexpr(1.4426950408889634)
SQRT_LOG2E = tl.constexpr(1.2011224087864498)


@triton.jit(do_not_specialize=_PLAIN)
def psi_statistics_kernel(
    psi_ptr, stride_b: tl.int64, stride_d: tl.int64, stride_n: tl.int64, partial_ptr, N, D, blocks, block_nodes,
    DP: tl.constexpr, R: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Sum, least and largest value of every channel over one block of nodes -> partial [B, blocks, 3, DP]."""
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
        at = field_at(psi_ptr, image, stride_b, d, stride_d, n, stride_n, AXIS)
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(x, axis=0)
        low = tl.minimum(low, tl.min(tl.where(inside, x, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, x, float("-inf")), axis=0))
    out = partial_ptr + program * 3 * DP + d
    tl.store(out, total)
    tl.store(out + DP, low)
    tl.store(out + 2 * DP, high)


@triton.jit(do_not_specialize=_PLAIN)
def psi_prepare_kernel(
    psi_ptr, stride_b: tl.int64, stride_d: tl.int64, stride_n: tl.int64, partial_ptr,
    hi_ptr, lo_ptr, bias_ptr, floor_ptr, centre_ptr, factor_ptr, N, D, blocks, pad_units,
    DP: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr, CENTRED: tl.constexpr, LOGIT_PRODUCTS: tl.constexpr,
    SHIFT: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """One block of R nodes: hi, lo [B, n_pad, DP], bias and floor [B, n_pad]; its first block writes centre, (σ, 1/κ).

    floor_i is just below row i's own logit (minus the softmax shift), so a walk starts with the maximum that its
    diagonal tile would find, in whichever part of the columns it works.
    """
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = (program % row_blocks) * R + tl.arange(0, R)
    d = tl.arange(0, DP)
    inside = (n[:, None] < N) & (d[None, :] < D)
    at = field_at(psi_ptr, image, stride_b, d, stride_d, n, stride_n, AXIS)
    psi = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        total = tl.zeros([DP], tl.float32)
        low = tl.full([DP], float("inf"), tl.float32)
        high = tl.full([DP], float("-inf"), tl.float32)
        for block in range(0, blocks):
            part = partial_ptr + (image * blocks + block) * 3 * DP + d
            total += tl.load(part)
            low = tl.minimum(low, tl.load(part + DP))
            high = tl.maximum(high, tl.load(part + 2 * DP))
        centre = total / N
        reach = tl.max(tl.where(d < D, tl.maximum(high - centre, centre - low), 0.0), axis=0) * SQRT_LOG2E
        exponent = ((reach.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        shrink = tl.minimum(tl.maximum(exponent - 13, 0), 114)
        kappa = SQRT_LOG2E * ((127 - shrink) << 23).to(tl.float32, bitcast=True)
        # 2⁹⁰ at most: beyond it (logits above 10³⁵) the softmax is one-hot anyway, and an infinite logit would be a NaN
        sigma = ((127 + tl.minimum(2 * shrink, 90)) << 23).to(tl.float32, bitcast=True)
        scaled = tl.where(inside, (psi - centre[None, :]) * kappa, 0.0)
        bias = sigma * tl.sum(scaled * (centre * kappa)[None, :], axis=1)
    else:
        centre = tl.zeros([DP], tl.float32)
        kappa = 1.0
        sigma = LOG2E
        scaled = psi
        bias = tl.zeros([R], tl.float32)
    hi = scaled.to(hi_ptr.dtype.element_ty)
    # the logit of what is multiplied: a floor above the row's maximum would leave no weight that fp16 can hold
    used = scaled if LOGIT_PRODUCTS == 3 else hi.to(tl.float32)
    own = sigma * tl.sum(used * used, axis=1)
    floor = own + bias - (own + tl.abs(bias)) * 0.0001220703125 - 1.0 - SHIFT
    to_row = image * n_pad + n
    tl.store(hi_ptr + to_row[:, None] * DP + d[None, :], hi)
    if LOGIT_PRODUCTS == 3:
        tl.store(lo_ptr + to_row[:, None] * DP + d[None, :], low_half(scaled, hi))
    tl.store(bias_ptr + to_row, tl.where(n < N, bias, float("-inf")))
    tl.store(floor_ptr + to_row, tl.where(n < N, floor, 0.0))
    if program % row_blocks == 0:
        tl.store(centre_ptr + image * DP + d, centre)
        tl.store(factor_ptr + image * 2, sigma)
        tl.store(factor_ptr + image * 2 + 1, 1.0 / kappa)
