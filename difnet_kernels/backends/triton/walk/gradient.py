"""What surrounds walk_backward: B1, B2, B7, the recomputed states, and the hi and lo of h that the walk streams.

h is streamed in units of its own class, powers of two that bring |h_k| to at most 1: so B6 has the same relative accuracy
in every class, however small its scores or its gradient. For h·y the classes have to be added. There h counts in units of
the image, class k by 1/scale_k as y counts by scale_k, all by one power of two h_scale that brings Σ_k |h_k| to at most 1:
then |h·y - δ| ≤ 2 whatever the units of the loss, and T fits fp16. unit_k turns the first into the second, and multiplies
the operands of a program's own rows. Only the spare column of chunk 0 holds λ - δ (λ = ∂L/∂lse, B4b), in units of the
image.

Both powers of two come from the largest entries of g, which the step before leaves in reach [B, C, KP]: of every class,
and in the spare column of chunk 0 of Σ_k |g_k| / scale_k; and of λ, which lse_reach [B] has.
"""

import triton
import triton.language as tl

from ..arithmetic import (
    blend,
    class_columns,
    field_at,
    field_tile,
    in_turn,
    load_hi_lo,
    low_of,
    mix,
    power_of_two_below,
    raise_to,
    tile_product,
    wide_product,
)
from ..launch import kernel
from .state import scale_of, store_state

# P_ji = P_ij·2^(level_i - level_j) is used while the levels of a tile pair lie within SPREAD: what underflowed in
# P_ij is then below 2⁻⁴⁶ in P_ji
SPREAD = tl.constexpr(80.0)


@kernel
def gradient_begin_kernel(
    # pointers
    given_grad_ptr,
    given_seed_ptr,
    given_state_ptr,
    given_mu_ptr,
    given_beta_ptr,
    walked_ptr,
    partial_ptr,
    g_ptr,
    states_ptr,
    scale_ptr,
    reach_ptr,
    # sizes
    N,
    K,
    KC,
    pad_units,
    chunks,
    blocks,
    batch,
    walks,
    # strides
    grad_b: tl.int64,
    grad_k: tl.int64,
    grad_n: tl.int64,
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
    GRAD_AXIS: tl.constexpr,
    SEED_AXIS: tl.constexpr,
    STATE_AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """g = ∂L/∂yᵀ: (B, K, N) -> [B, C, n_pad, KP] fp32, its reach [B, C, KP], and y⁰ ... yᵀ⁻¹ [T, B, C, n_pad, KP] fp32, made
    again from what the forward saved. An image's first block writes the scale of its classes [B, C, KP], which the forward
    had."""
    in_turn(PDL)
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = ((program % row_blocks) * R).to(tl.int32) + tl.arange(0, R)
    row_sum = tl.zeros([R], tl.float32)
    for chunk in range(0, chunks):
        column, label, is_class, _ = class_columns(chunk, K, KC, KP)
        inside = (n < N)[:, None] & is_class[None, :]
        g = field_tile(given_grad_ptr, image, grad_b, label, grad_k, n, grad_n, inside, GRAD_AXIS)
        scale = scale_of(partial_ptr, image * chunks + chunk, blocks, column, KP)
        if program % row_blocks == 0:
            tl.store(scale_ptr + (image * chunks + chunk) * KP + column, scale)
        row_sum += tl.sum(tl.abs(g) / scale[None, :], axis=1)
        raise_to(reach_ptr + (image * chunks + chunk) * KP + column, tl.max(tl.abs(g), axis=0), is_class)
        at = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
        tl.store(g_ptr + at, g)
        s = field_tile(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, inside, SEED_AXIS)
        y = field_tile(given_state_ptr, image, state_b, label, state_k, n, state_n, inside, STATE_AXIS)
        at_walked = walked_ptr + (image * N + n[:, None]) * K + label[None, :]
        tl.store(states_ptr + at, y)
        for t in range(1, walks):
            w = tl.load(at_walked + (t - 1) * (batch.to(tl.int64) * N * K), mask=inside, other=0.0)
            mixed = mix(w, s, tl.load(given_mu_ptr + t - 1))  # (W3)
            y = tl.where(inside, blend(mixed, y, tl.load(given_beta_ptr + t - 1)), 0.0)  # (W4)
            tl.store(states_ptr + t * (batch.to(tl.int64) * chunks * n_pad * KP) + at, y)
    raise_to(reach_ptr + image * chunks * KP + KC, tl.max(row_sum, axis=0))


@triton.jit
def alone_with(
    psi, sigma, lse, n, sizes, DP: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, LOGIT_PRODUCTS: tl.constexpr
):
    """The other node j that row n [R] gives more than half of its weight, P_nj > 1/2, or -1; psi: (hi, lo, bias) of the
    image, in tiles of 16 columns."""
    hi_ptr, lo_ptr, bias_ptr = psi
    N, width, depths = sizes
    d = tl.arange(0, DP)
    j = tl.arange(0, 16)
    if not WIDE:
        row_hi, row_lo = load_hi_lo(hi_ptr, lo_ptr, n[:, None] * DP + d[None, :], LOGIT_PRODUCTS)
    most = tl.zeros_like(n).to(tl.float32) + float("-inf")
    looked_at = tl.zeros_like(n)
    for tile in range(0, tl.cdiv(N, 16)):
        if WIDE:
            logit = wide_product(hi_ptr, lo_ptr, n, tile * 16 + j, width, depths, DEPTH, LOGIT_PRODUCTS)  # (W1)
        else:
            col_hi, col_lo = load_hi_lo(hi_ptr, lo_ptr, (tile * 16 + j)[:, None] * DP + d[None, :], LOGIT_PRODUCTS)
            logit = tile_product(row_hi, row_lo, tl.trans(col_hi), tl.trans(col_lo), LOGIT_PRODUCTS)  # (W1)
        x = tl.fma(logit, sigma, tl.load(bias_ptr + tile * 16 + j)[None, :])
        best, where = tl.max(tl.where(x == x, x, float("-inf")), axis=1, return_indices=True)
        looked_at = tl.where(best > most, tile * 16 + where, looked_at)
        most = tl.maximum(most, best)
    return tl.where((tl.exp2(most - lse) > 0.5) & (looked_at != n), looked_at, -1)


@kernel
def gradient_prepare_kernel(
    # pointers: read
    g_ptr,
    reach_ptr,
    scale_ptr,
    given_mu_ptr,
    given_beta_ptr,
    walked_ptr,
    lse_ptr,
    psi_hi_ptr,
    psi_lo_ptr,
    bias_ptr,
    factor_ptr,
    given_seed_ptr,
    states_ptr,
    given_grad_lse_ptr,
    lse_reach_ptr,
    # pointers: written for walk_backward, and for the step before
    y_hi_ptr,
    y_lo_ptr,
    h_hi_ptr,
    h_lo_ptr,
    alone_ptr,
    h_scale_ptr,
    unit_ptr,
    lse_pad_ptr,
    level_ptr,
    drop_ptr,
    spread_ptr,
    seed_sum_ptr,
    gate_ptr,
    lse_grad_ptr,
    # sizes
    N,
    K,
    KC,
    pad_units,
    chunks,
    batch,
    step,
    walks,
    slices,
    depths,
    # strides
    seed_b: tl.int64,
    seed_k: tl.int64,
    seed_n: tl.int64,
    lse_b: tl.int64,
    lse_n: tl.int64,
    # constants
    DP: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    KP: tl.constexpr,
    PAD: tl.constexpr,
    R: tl.constexpr,
    LOGIT_PRODUCTS: tl.constexpr,
    VALUE_PRODUCTS: tl.constexpr,
    SEED_AXIS: tl.constexpr,
    OF_LSE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One step t for R rows (B1, B2, B7): yᵗ and h as hi and lo [B, C, n_pad, KP], g <- (1-β) g, seed_sum += β(1-μ) g,
    and gate [B·n_pad/R, 2], the block's part of ∂μ and ∂β. An image's first block writes h_scale [B] and unit
    [B, C, 2, KP]: class to image, class to the loss.

    level_i = row_lse_i + bias_i turns P_ij into P_ji = P_ij·2^(level_i - level_j). The R rows are one column tile of
    walk_backward: spread [B, n_pad/R, 2] holds the least and largest level in it (∞ and -∞ if all are idle), drop_j =
    2^(their middle - level_j).
    In an image with outliers alone [B, n_pad] is the node that a row looks at alone, or -1. OF_LSE: lse_grad [B, n_pad] is
    ∂L/∂lse in units of the image.
    """
    in_turn(PDL)
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = ((program % row_blocks) * R).to(tl.int32) + tl.arange(0, R)
    rows = n < N
    mu = tl.load(given_mu_ptr + step)
    beta = tl.load(given_beta_ptr + step)
    row_reach = tl.load(reach_ptr + image * chunks * KP + KC).to(tl.float32, bitcast=True)
    reach_of_t = tl.abs(mu * beta) * row_reach
    if OF_LSE:
        reach_of_t += tl.load(lse_reach_ptr + image).to(tl.float32, bitcast=True)
    h_scale = 0.5 / power_of_two_below(reach_of_t)
    delta = tl.zeros([R], tl.float32)
    most = tl.zeros([R], tl.float32)  # |h|, of every row
    grad_mu = tl.zeros([R], tl.float32)
    grad_beta = tl.zeros([R], tl.float32)
    for chunk in range(0, chunks):
        column, label, is_class, spare = class_columns(chunk, K, KC, KP)
        inside = rows[:, None] & is_class[None, :]
        at = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
        at_class = (image * chunks + chunk) * KP + column
        scale = tl.load(scale_ptr + at_class)
        reach = tl.load(reach_ptr + at_class).to(tl.float32, bitcast=True)
        own = 0.5 / power_of_two_below(tl.abs(mu * beta) * reach)
        # at most 4 where there is a gradient; without one h is zero, and nothing may become an infinity
        unit = tl.where(spare, 1.0, tl.minimum(h_scale / scale / own, 4.0))
        at_walked = walked_ptr + (image * N + n[:, None]) * K + label[None, :]
        walk_stride = batch.to(tl.int64) * N * K
        s = field_tile(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, inside, SEED_AXIS)
        y = tl.load(states_ptr + step * (batch.to(tl.int64) * chunks * n_pad * KP) + at)
        w = tl.load(at_walked + step * walk_stride, mask=inside, other=0.0)
        g = tl.load(g_ptr + at)
        h = mu * beta * g * own[None, :]  # (B1), in units of its class
        most = tl.maximum(most, tl.max(tl.abs(h), axis=1))
        h_hi = h.to(tl.float16)
        h_in_image = h_hi.to(tl.float32) * unit[None, :]
        # (B2) from hi and lo of h and w, as walk_backward multiplies h and y: where P is nearly one-hot, w = y and
        # h·y - δ has to vanish, so both must be rounded alike
        w_hi = (w * scale[None, :]).to(tl.float16)
        delta_tile = h_in_image * w_hi.to(tl.float32)
        if VALUE_PRODUCTS == 3:
            h_lo = low_of(h, h_hi)
            w_lo = low_of(w * scale[None, :], w_hi)
            delta_tile += h_in_image * w_lo.to(tl.float32) + h_lo.to(tl.float32) * unit[None, :] * w_hi.to(tl.float32)
        delta += tl.sum(delta_tile, axis=1)  # (B2)
        grad_mu += tl.sum((w - s) * g, axis=1)  # (B7)
        mixed = mix(w, s, mu)  # (W3)
        grad_beta += tl.sum((mixed - y) * g, axis=1)  # (B7)
        if program % row_blocks == 0:
            at_unit = unit_ptr + (image * chunks + chunk) * 2 * KP + column
            tl.store(at_unit, unit)
            tl.store(at_unit + KP, 1.0 / own)
        store_state(y_hi_ptr, y_lo_ptr, at, y * scale[None, :], spare, VALUE_PRODUCTS)
        # chunk 0's spare column is written once δ is complete
        keep = ((column != KC)[None, :] | (chunk > 0)) & (n[:, None] < n_pad)
        tl.store(h_hi_ptr + at, h_hi, mask=keep)
        if VALUE_PRODUCTS == 3:
            tl.store(h_lo_ptr + at, h_lo, mask=keep)
        tl.store(g_ptr + at, (1.0 - beta) * g)  # (B1)
        more = beta * (1.0 - mu) * g  # (B1)
        if step < walks - 1:
            more += tl.load(seed_sum_ptr + at)
        tl.store(seed_sum_ptr + at, more)
    at_spare = (image * chunks * n_pad + n) * KP + KC
    if OF_LSE:
        pull = tl.load(given_grad_lse_ptr + image * lse_b + n * lse_n, mask=rows, other=0.0).to(tl.float32) * h_scale
        tl.store(lse_grad_ptr + image * n_pad + n, pull)
        delta -= pull  # (B4b)
    delta_hi = (-delta).to(tl.float16)
    tl.store(h_hi_ptr + at_spare, delta_hi)
    if VALUE_PRODUCTS == 3:
        tl.store(h_lo_ptr + at_spare, low_of(-delta, delta_hi))
    tl.store(gate_ptr + program * 2, beta * tl.sum(grad_mu, axis=0))  # (B7)
    tl.store(gate_ptr + program * 2 + 1, tl.sum(grad_beta, axis=0))
    lse_at = lse_ptr + (step.to(tl.int64) * batch + image) * N
    tl.store(lse_pad_ptr + image * n_pad + n, tl.load(lse_at + n, mask=rows, other=float("inf")))
    # rows past N repeat node N-1: finite, and neutral for the spread
    near = tl.minimum(n, N - 1)
    level = tl.load(lse_at + near) + tl.load(bias_ptr + image * n_pad + near)
    tl.store(level_ptr + image * n_pad + n, level)
    # nobody looks at a column of -∞, and where it has no gradient (a masked node) P_ji meets zeros: it may be anything
    idle = (level == float("-inf")) & (most == 0.0) & (delta == 0.0)
    low = tl.min(tl.where(idle, float("inf"), level), axis=0)
    high = tl.max(level, axis=0)
    tl.store(spread_ptr + program * 2, low)
    tl.store(spread_ptr + program * 2 + 1, high)
    # clipped to stay finite: where the spread is that wide, walk_backward does not use it
    drop = tl.exp2(tl.minimum(tl.maximum(0.5 * (low + high) - level, -SPREAD), SPREAD))
    tl.store(drop_ptr + image * n_pad + n, tl.where(idle, 0.0, drop))
    if program % row_blocks == 0:
        tl.store(h_scale_ptr + image, h_scale)
    if tl.load(factor_ptr + image * 4 + 2) != 0.0:  # the image has outliers
        width = DP
        if WIDE:
            width = DP * slices
        psi = (psi_hi_ptr + image * n_pad * width, psi_lo_ptr + image * n_pad * width, bias_ptr + image * n_pad)
        sigma, lse = tl.load(factor_ptr + image * 4), tl.load(lse_at + near)
        alone = alone_with(psi, sigma, lse, n, (N, width, depths), DP, WIDE, DEPTH, LOGIT_PRODUCTS)
        tl.store(alone_ptr + image * n_pad + n, tl.where(rows, alone, -1))


@kernel
def gradient_end_kernel(
    # pointers
    g_ptr,
    seed_sum_ptr,
    given_seed_ptr,
    given_state_ptr,
    gate_ptr,
    given_grad_mu_ptr,
    given_grad_beta_ptr,
    # sizes
    N,
    K,
    KC,
    pad_units,
    chunks,
    gates,
    parts,
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
    HAS_STATE: tl.constexpr,
    SEED_AXIS: tl.constexpr,
    STATE_AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """∂L/∂y⁰ and ∂L/∂s: g and seed_sum [B, C, n_pad, KP] -> (B, K, N), any strides; without a state the first is added
    to the second (W5). Before them `gates` programs add the parts of ∂μ and ∂β of a walk each."""
    in_turn(PDL)
    if tl.program_id(0) < gates:
        add_gates(gate_ptr, given_grad_mu_ptr, given_grad_beta_ptr, tl.program_id(0), parts)
    else:
        n_pad = pad_units * PAD
        row_blocks = n_pad // R
        program = (tl.program_id(0) - gates).to(tl.int64)
        chunk = (program // row_blocks) % chunks
        image = program // (row_blocks * chunks)
        n = (program % row_blocks) * R + tl.arange(0, R)
        column, label, is_class, _ = class_columns(chunk, K, KC, KP)
        inside = (n < N)[:, None] & is_class[None, :]
        at = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
        g = tl.load(g_ptr + at)
        total = tl.load(seed_sum_ptr + at)
        if HAS_STATE:
            to = field_at(given_state_ptr, image, state_b, label, state_k, n, state_n, STATE_AXIS)
            tl.store(to, g.to(given_state_ptr.dtype.element_ty), mask=inside)
        else:
            total += g  # (W5)
        to = field_at(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, SEED_AXIS)
        tl.store(to, total.to(given_seed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_gates(gate_ptr, grad_mu_ptr, grad_beta_ptr, walk, parts):
    """(B7) ∂μ, ∂β (T,) of one walk: the blocks' parts [T, parts, 2], added in a fixed order."""
    gate_ptr += walk.to(tl.int64) * parts * 2
    mu = tl.zeros([256], tl.float32)
    beta = tl.zeros([256], tl.float32)
    for begin in range(0, parts, 256):
        at = begin + tl.arange(0, 256)
        mu += tl.load(gate_ptr + at * 2, mask=at < parts, other=0.0)
        beta += tl.load(gate_ptr + at * 2 + 1, mask=at < parts, other=0.0)
    tl.store(grad_mu_ptr + walk, tl.sum(mu, axis=0).to(grad_mu_ptr.dtype.element_ty))  # (B7)
    tl.store(grad_beta_ptr + walk, tl.sum(beta, axis=0).to(grad_beta_ptr.dtype.element_ty))
