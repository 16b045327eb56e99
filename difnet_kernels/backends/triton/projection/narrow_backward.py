"""Ψ backward for C ≤ 4 (Ψ2-Ψ4) in one pass: ∂z stays in registers, and a program adds ∂z fᵀ over its range of pixels. Its
parts of grad_weight are added by `projection_weight_reduce_kernel`."""

import triton.language as tl

from ..arithmetic import in_turn
from ..launch import kernel
from .backward import chosen_gradient, pixel_axes, statistics_gradient
from .tiles import narrow_features, narrow_project, narrow_weight


@kernel
def projection_narrow_backward_kernel(
    # pointers
    given_grad_ptr,
    position_ptr,
    f_ptr,
    out_ptr,
    given_weight_ptr,
    mean_ptr,
    given_grad_mean_ptr,
    given_grad_variance_ptr,
    part_ptr,
    # sizes
    D,
    Z,
    Y,
    X,
    OZ,
    OY,
    OX,
    has_mean,
    has_variance,
    share,
    units,
    last_unit,
    range_units,
    # strides
    g_b: tl.int64,
    g_d: tl.int64,
    g_z: tl.int64,
    g_y: tl.int64,
    g_x: tl.int64,
    p_b: tl.int64,
    p_d: tl.int64,
    p_z: tl.int64,
    p_y: tl.int64,
    p_x: tl.int64,
    f_b: tl.int64,
    f_c: tl.int64,
    f_z: tl.int64,
    f_y: tl.int64,
    f_x: tl.int64,
    o_b: tl.int64,
    o_c: tl.int64,
    o_z: tl.int64,
    o_y: tl.int64,
    o_x: tl.int64,
    # constants
    DP: tl.constexpr,
    P: tl.constexpr,
    PAD: tl.constexpr,
    NARROW: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    POSITION_LAST: tl.constexpr,
    STATISTICS: tl.constexpr,
    WANT_FEATURES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Ψ2-Ψ4 for C = NARROW ≤ 4 channels and range_units units of pixels of the whole batch.

    grad_peak, position (B, D, OZ, OY, OX), f (B, C, Z, Y, X) -> grad_features like f, part of grad_weight
    [ranges, DP, NARROW].
    """
    in_turn(PDL)
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    w0, w1 = narrow_weight(given_weight_ptr, d, 0, NARROW, D), narrow_weight(given_weight_ptr, d, 1, NARROW, D)
    w2, w3 = narrow_weight(given_weight_ptr, d, 2, NARROW, D), narrow_weight(given_weight_ptr, d, 3, NARROW, D)
    pixels = Z * Y * X
    sum0 = tl.zeros([DP, P], tl.float32)
    sum1 = tl.zeros([DP, P], tl.float32)
    sum2 = tl.zeros([DP, P], tl.float32)
    sum3 = tl.zeros([DP, P], tl.float32)
    first = program * range_units
    last = tl.minimum(first + range_units, last_unit)
    for step in range(first * (PAD // P), last * (PAD // P)):
        image = step // (units * (PAD // P))
        pixel = (step % (units * (PAD // P))).to(tl.int32) * P + tl.arange(0, P)
        own = pixel < pixels
        pixel = tl.minimum(pixel, pixels - 1)
        z, y, x = pixel_axes(pixel, Y, X)
        grad = chosen_gradient(
            (given_grad_ptr + image * g_b, g_d, g_z, g_y, g_x),
            (position_ptr + image * p_b, p_d, p_z, p_y, p_x),
            (pixel, z, y, x, own),
            (D, Z, Y, X, OZ, OY, OX),
            DP,
            P,
            GRAD_LAST,
            POSITION_LAST,
        )
        f0, f1, f2, f3 = narrow_features(f_ptr + image * f_b + z * f_z + y * f_y + x * f_x, f_c, NARROW)
        if STATISTICS:
            value = narrow_project(w0, w1, w2, w3, f0, f1, f2, f3, NARROW)
            statistics = (mean_ptr, given_grad_mean_ptr, given_grad_variance_ptr, has_mean, has_variance, share)
            more = statistics_gradient(value, statistics, D, DP)
            grad += tl.where(own[None, :], more, 0.0)
        sum0 = tl.fma(grad, f0[None, :], sum0)  # (Ψ4)
        if NARROW > 1:
            sum1 = tl.fma(grad, f1[None, :], sum1)
        if NARROW > 2:
            sum2 = tl.fma(grad, f2[None, :], sum2)
        if NARROW > 3:
            sum3 = tl.fma(grad, f3[None, :], sum3)
        if WANT_FEATURES:
            to = out_ptr + image * o_b + z * o_z + y * o_y + x * o_x
            kind = out_ptr.dtype.element_ty
            tl.store(to, tl.sum(grad * w0[:, None], axis=0).to(kind), mask=own)  # (Ψ3)
            if NARROW > 1:
                tl.store(to + o_c, tl.sum(grad * w1[:, None], axis=0).to(kind), mask=own)
            if NARROW > 2:
                tl.store(to + 2 * o_c, tl.sum(grad * w2[:, None], axis=0).to(kind), mask=own)
            if NARROW > 3:
                tl.store(to + 3 * o_c, tl.sum(grad * w3[:, None], axis=0).to(kind), mask=own)
    to = part_ptr + program * DP * NARROW + d * NARROW
    tl.store(to, tl.sum(sum0, axis=1))
    if NARROW > 1:
        tl.store(to + 1, tl.sum(sum1, axis=1))
    if NARROW > 2:
        tl.store(to + 2, tl.sum(sum2, axis=1))
    if NARROW > 3:
        tl.store(to + 3, tl.sum(sum3, axis=1))
