"""Ψ backward for more than four channels (Ψ2-Ψ4). ∂z of a pixel is gathered, not scattered: the windows that contain it
are known, each tells by its position whether it chose this pixel, and z is projected again for the statistics' part. No
atomics, fixed order.

∂z of a bounded block of pixels goes through a scratch buffer, because every chunk of channels needs it:
`projection_pixel_gradient_kernel` writes it, `projection_feature_gradient_kernel` (Wᵀ ∂z) and
`projection_weight_gradient_kernel` (∂z fᵀ) read it. The parts of grad_weight are added by
`projection_weight_reduce_kernel`. Up to four channels: `narrow_backward`.

The pixels of an image are padded to units of PAD; ∂z is zero in the padding.
"""

import triton
import triton.language as tl

from ..arithmetic import in_turn
from ..launch import kernel
from .tiles import (
    FIRST_AXIS,
    feature_tile,
    finite_product,
    next_offset,
    project,
    split_in_units,
    weight_tile,
    window_end,
    window_start,
)


@triton.jit
def pixel_axes(pixel, Y, X):
    """(z, y, x) of flat pixels."""
    return pixel // (X * Y), (pixel // X) % Y, pixel % X


@triton.jit
def node_tile(at, stride, D, DP: tl.constexpr, LAST: tl.constexpr):
    """[DP, P] of a pooled field whose nodes are at `at` [P]; LAST: its channels are contiguous."""
    d = tl.arange(0, DP)
    if LAST or FIRST_AXIS:
        tile = tl.trans(tl.load(at[:, None] + (d if LAST else d * stride)[None, :], mask=(d < D)[None, :], other=0))
    else:
        tile = tl.load(at[None, :] + d[:, None] * stride, mask=(d < D)[:, None], other=0)
    return tile


@triton.jit
def chosen_gradient(
    grad,
    position,
    pixels,
    sizes,
    DP: tl.constexpr,
    P: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    POSITION_LAST: tl.constexpr,
):
    """(Ψ2, first part) Σ grad_peak [DP, P] over the windows whose position is the pixel, in the order of the windows.

    grad and position: (pointer at the image, strides of d, z, y, x); pixels: (flat, z, y, x, inside the image).
    """
    grad_ptr, g_d, g_z, g_y, g_x = grad
    position_ptr, p_d, p_z, p_y, p_x = position
    pixel, z, y, x, own = pixels
    D, Z, Y, X, OZ, OY, OX = sizes
    first_z, first_y, first_x = window_start(z, OZ, Z), window_start(y, OY, Y), window_start(x, OX, X)
    many_z = window_end(z, OZ, Z) - first_z
    many_y = window_end(y, OY, Y) - first_y
    many_x = window_end(x, OX, X) - first_x
    most_x = tl.max(many_x, axis=0)
    most_y = tl.max(many_y, axis=0)
    total = tl.zeros([DP, P], tl.float32)
    off_x, off_y, off_z = 0, 0, 0
    for _ in range(0, tl.max(many_z, axis=0) * most_y * most_x):
        inside = own & (off_x < many_x) & (off_y < many_y) & (off_z < many_z)
        at_x = tl.where(inside, first_x + off_x, first_x)
        at_y = tl.where(inside, first_y + off_y, first_y)
        at_z = tl.where(inside, first_z + off_z, first_z)
        chosen = node_tile(position_ptr + at_z * p_z + at_y * p_y + at_x * p_x, p_d, D, DP, POSITION_LAST)
        given = node_tile(grad_ptr + at_z * g_z + at_y * g_y + at_x * g_x, g_d, D, DP, GRAD_LAST)
        total += tl.where((chosen == pixel[None, :]) & inside[None, :], given.to(tl.float32), 0.0)  # (Ψ2)
        off_x, off_y, off_z = next_offset(off_x, off_y, off_z, most_x, most_y)
    return total


@triton.jit
def statistics_gradient(value, statistics, D, DP: tl.constexpr):
    """(Ψ2, second part) (grad_mean + 2 (z - mean) grad_variance) / n for z [DP, P].

    statistics: (mean, grad_mean, grad_variance, whether there is grad_mean, grad_variance: 1 or 0, share = 1 / n).
    """
    mean_ptr, grad_mean_ptr, grad_variance_ptr, has_mean, has_variance, share = statistics
    d = tl.arange(0, DP)
    grad_mean = tl.load(grad_mean_ptr + d, mask=d < has_mean * D, other=0.0)
    grad_variance = tl.load(grad_variance_ptr + d, mask=d < has_variance * D, other=0.0)
    mean = tl.load(mean_ptr + d, mask=d < D, other=0.0)
    apart = (value - mean[:, None]) * (2.0 * share * grad_variance)[:, None]
    return apart + (share * grad_mean)[:, None]  # (Ψ2)


@kernel
def projection_pixel_gradient_kernel(
    # pointers
    given_grad_ptr,
    position_ptr,
    f_ptr,
    split_ptr,
    unit_ptr,
    mean_ptr,
    given_grad_mean_ptr,
    given_grad_variance_ptr,
    scratch_ptr,
    # sizes
    C,
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
    first_unit,
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
    # constants
    DP: tl.constexpr,
    P: tl.constexpr,
    PAD: tl.constexpr,
    CC: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_LOW: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    POSITION_LAST: tl.constexpr,
    STATISTICS: tl.constexpr,
    PDL: tl.constexpr,
):
    """(Ψ2) ∂z of P pixels: grad_peak, position (B, D, OZ, OY, OX), f (B, C, Z, Y, X) -> scratch [pixels of the block, DP]."""
    in_turn(PDL)
    program = tl.program_id(0).to(tl.int64)
    step = first_unit.to(tl.int64) * (PAD // P) + program
    image = step // (units * (PAD // P))
    pixel = (step % (units * (PAD // P))).to(tl.int32) * P + tl.arange(0, P)
    own = pixel < Z * Y * X
    pixel = tl.minimum(pixel, Z * Y * X - 1)
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
    if STATISTICS:
        at = f_ptr + (image * f_b + z * f_z + y * f_y + x * f_x) * UNIT
        weight = (split_ptr, tl.load(unit_ptr + tl.arange(0, DP)))
        value = project(weight, (at, f_c, C), DP, P, CC, EVEN, CHANNELS_LAST, HAS_LOW)
        statistics = (mean_ptr, given_grad_mean_ptr, given_grad_variance_ptr, has_mean, has_variance, share)
        more = statistics_gradient(value, statistics, D, DP)
        grad += tl.where(own[None, :], more, 0.0)
    row = program * P + tl.arange(0, P)
    tl.store(scratch_ptr + row[:, None] * DP + tl.arange(0, DP)[None, :], tl.trans(grad))


@kernel
def projection_feature_gradient_kernel(
    # pointers
    scratch_ptr,
    split_ptr,
    unit_ptr,
    out_ptr,
    # sizes
    C,
    Z,
    Y,
    X,
    units,
    first_unit,
    group,
    # strides
    o_b: tl.int64,
    o_c: tl.int64,
    o_z: tl.int64,
    o_y: tl.int64,
    o_x: tl.int64,
    # constants
    DP: tl.constexpr,
    P: tl.constexpr,
    PAD: tl.constexpr,
    CC: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """(Ψ3) grad_features = Wᵀ ∂z of P pixels and `group` chunks of channels: scratch [pixels, DP] -> (B, C, Z, Y, X)."""
    in_turn(PDL)
    chunks = tl.cdiv(C, CC)
    groups = tl.cdiv(chunks, group)
    program = tl.program_id(0).to(tl.int64)
    local = program // groups
    step = first_unit.to(tl.int64) * (PAD // P) + local
    image = step // (units * (PAD // P))
    pixel = (step % (units * (PAD // P))).to(tl.int32) * P + tl.arange(0, P)
    own = pixel < Z * Y * X
    z, y, x = pixel_axes(tl.minimum(pixel, Z * Y * X - 1), Y, X)
    d = tl.arange(0, DP)
    row = local * P + tl.arange(0, P)
    grad = tl.load(scratch_ptr + row[:, None] * DP + d[None, :]) * tl.load(unit_ptr + d)[None, :]
    g_hi, g_lo, unit = split_in_units(tl.trans(grad), 0, True)  # [DP, P]
    to_pixel = out_ptr + (image * o_b + z * o_z + y * o_y + x * o_x) * UNIT
    first = (program % groups).to(tl.int32) * group
    last = tl.minimum(first + group, chunks)
    tl.assume(first < last)
    for chunk in range(first, last):
        w_hi, w_lo = weight_tile(split_ptr, chunk * CC, chunks, DP, CC)
        out = finite_product(tl.trans(w_hi), tl.trans(w_lo), g_hi, g_lo, True) * unit[None, :]  # (Ψ3) [CC, P]
        out = out.to(out_ptr.dtype.element_ty)
        c = chunk * CC + tl.arange(0, CC)
        if CHANNELS_LAST or FIRST_AXIS:
            to = to_pixel[:, None] + (c if CHANNELS_LAST else c * o_c)[None, :]
            if EVEN:
                tl.store(to, tl.trans(out), mask=own[:, None])
            else:
                tl.store(to, tl.trans(out), mask=own[:, None] & (c < C)[None, :])
        else:
            tl.store(to_pixel[None, :] + c[:, None] * o_c, out, mask=own[None, :] & (c < C)[:, None])


@kernel
def projection_weight_gradient_kernel(
    # pointers
    scratch_ptr,
    f_ptr,
    part_ptr,
    # sizes
    C,
    Z,
    Y,
    X,
    units,
    first_unit,
    last_unit,
    range_units,
    add,
    # strides
    f_b: tl.int64,
    f_c: tl.int64,
    f_z: tl.int64,
    f_y: tl.int64,
    f_x: tl.int64,
    # constants
    DP: tl.constexpr,
    PAD: tl.constexpr,
    CC: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_LOW: tl.constexpr,
    FLAT: tl.constexpr,
    PDL: tl.constexpr,
):
    """(Ψ4) one range of a block's pixels, one chunk of channels: part [ranges, DP, chunks·CC] = (+=, if add) ∂z fᵀ.

    scratch [pixels, DP], f (B, C, Z, Y, X); FLAT: the pixels of a channel of f lie next to each other, in scan order.
    """
    in_turn(PDL)
    chunks = tl.cdiv(C, CC)
    program = tl.program_id(0).to(tl.int64)
    chunk = (program % chunks).to(tl.int32)
    part = program // chunks
    d = tl.arange(0, DP)
    c = chunk * CC + tl.arange(0, CC)
    to = part_ptr + (part * DP + d[:, None]) * (chunks * CC) + c[None, :]
    total = tl.zeros([DP, CC], tl.float32)
    if add != 0:
        total = tl.load(to)
    first = part.to(tl.int32) * range_units
    last = tl.minimum(first + range_units, last_unit - first_unit)
    for local in range(first, last):
        unit_number = first_unit + local
        image = (unit_number // units).to(tl.int64)
        pixel = (unit_number % units) * PAD + tl.arange(0, PAD)
        row = local * PAD + tl.arange(0, PAD)
        grad = tl.load(scratch_ptr + row[:, None] * DP + d[None, :])
        g_hi, g_lo, g_unit = split_in_units(tl.trans(grad), 1, True)  # [DP, PAD]
        if FLAT:
            to_f = f_ptr + image * f_b + (c[:, None] * f_c + pixel[None, :])
            inside = (pixel < Z * Y * X)[None, :]
            f = tl.load(to_f, mask=inside if EVEN else inside & (c < C)[:, None], other=0.0)
        else:
            z, y, x = pixel_axes(tl.minimum(pixel, Z * Y * X - 1), Y, X)
            at = f_ptr + (image * f_b + z * f_z + y * f_y + x * f_x) * UNIT
            f = feature_tile(at, chunk * CC, f_c, C, CC, EVEN, CHANNELS_LAST)
        f_hi, f_lo, f_unit = split_in_units(f, 1, HAS_LOW)
        made = finite_product(g_hi, g_lo, tl.trans(f_hi), tl.trans(f_lo), HAS_LOW)
        total = tl.fma(made * g_unit[:, None], tl.broadcast_to(f_unit[None, :], [DP, CC]), total)  # (Ψ4)
    tl.store(to, total)


@kernel
def projection_weight_reduce_kernel(
    part_ptr, out_ptr, C, D, ranges, columns, DP: tl.constexpr, R: tl.constexpr, E: tl.constexpr, PDL: tl.constexpr
):
    """(Ψ4) grad_weight [D, C] from part [ranges, DP, columns], E elements a program, in the order of the ranges."""
    in_turn(PDL)
    element = tl.program_id(0) * E + tl.arange(0, E)
    size = DP * columns
    total = tl.zeros([R, E], tl.float32)
    for begin in range(0, ranges, R):
        part = begin + tl.arange(0, R)
        at = part_ptr + part.to(tl.int64)[:, None] * size + element[None, :]
        total += tl.load(at, mask=(part < ranges)[:, None] & (element < size)[None, :], other=0.0)
    d = element // columns
    c = element % columns
    tl.store(out_ptr + d * C + c, tl.sum(total, axis=0), mask=(d < D) & (c < C))
