"""Ψ forward (Ψ1 without bias and BN): z = W f and its pooling in one pass, z never leaves the registers.

A program owns J neighbouring windows of one image and all D channels. It walks over the offsets (z, y, x) inside the
largest window; at each one the J pixels at that offset of their windows are projected, and a pixel that is better than
the best so far replaces it. A window that ends before the offset keeps what it has. In scan order, a strictly better
pixel replaces: the first of equals wins, and so does every NaN, as in torch.

BN's slope γ decides what is better: the sign of γ multiplies z before it is compared (a channel with γ = 0 is constant
after BN, so that its first pixel wins). In training the tile also leaves the count, the mean and the sum of squared
deviations of its pixels, each of which belongs to one window; `projection_statistics_kernel` adds the tiles in a fixed order.
"""

import triton.language as tl

from ..arithmetic import in_turn
from ..launch import kernel
from .tiles import narrow_features, narrow_project, narrow_weight, next_offset, project, window_end, window_start


@kernel
def projection_forward_kernel(
    # pointers
    f_ptr,
    given_weight_ptr,
    split_ptr,
    unit_ptr,
    given_slope_ptr,
    peak_ptr,
    position_ptr,
    partial_ptr,
    # sizes
    C,
    D,
    Z,
    Y,
    X,
    OZ,
    OY,
    OX,
    wide_z,
    wide_y,
    wide_x,
    # strides
    f_b: tl.int64,
    f_c: tl.int64,
    f_z: tl.int64,
    f_y: tl.int64,
    f_x: tl.int64,
    out_b: tl.int64,
    out_d: tl.int64,
    out_z: tl.int64,
    out_y: tl.int64,
    out_x: tl.int64,
    # constants
    DP: tl.constexpr,
    J: tl.constexpr,
    CC: tl.constexpr,
    NARROW: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    STATISTICS: tl.constexpr,
    OUT_LAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """(Ψ1) peak = z at the pixel of every window where sign(slope)·z is largest, z = W f; position = that pixel.

    f (B, C, Z, Y, X), batch and pixel strides in units of UNIT elements -> peak, position (B, D, OZ, OY, OX), and
    with STATISTICS partial [B·tiles, 3, DP]. NARROW: C where C ≤ 4, else 0. OUT_LAST: out_d is 1.
    """
    in_turn(PDL)
    nodes = OZ * OY * OX
    tiles = tl.cdiv(nodes, J)
    program = tl.program_id(0).to(tl.int64)
    image = program // tiles
    node = (program % tiles).to(tl.int32) * J + tl.arange(0, J)
    own = node < nodes
    node = tl.minimum(node, nodes - 1)
    x = node % OX
    y = (node // OX) % OY
    z = node // (OX * OY)
    x_start, y_start, z_start = window_start(x, X, OX), window_start(y, Y, OY), window_start(z, Z, OZ)
    x_wide = window_end(x, X, OX) - x_start
    y_wide = window_end(y, Y, OY) - y_start
    z_wide = window_end(z, Z, OZ) - z_start
    start = (z_start * Y + y_start) * X + x_start
    start_at = f_ptr + (image * f_b + z_start * f_z + y_start * f_y + x_start * f_x) * UNIT
    d = tl.arange(0, DP)
    sign = tl.full([DP], 1.0, tl.float32)
    cap = tl.full([DP], float("inf"), tl.float32)
    if HAS_SLOPE:
        slope = tl.load(given_slope_ptr + d, mask=d < D, other=1.0)
        sign = tl.where(slope < 0.0, -1.0, 1.0)
        # nothing but a NaN passes the first pixel; 0·∞, a NaN to torch, is an infinite pixel like any other here
        cap = tl.where(slope == 0.0, float("-inf"), float("inf"))
    # from here on W, z and its statistics carry the sign of the slope
    if NARROW > 0:
        w0, w1 = (
            narrow_weight(given_weight_ptr, d, 0, NARROW, D) * sign,
            narrow_weight(given_weight_ptr, d, 1, NARROW, D) * sign,
        )
        w2, w3 = (
            narrow_weight(given_weight_ptr, d, 2, NARROW, D) * sign,
            narrow_weight(given_weight_ptr, d, 3, NARROW, D) * sign,
        )
        f0, f1, f2, f3 = narrow_features(start_at, f_c, NARROW)
    else:
        unit = tl.load(unit_ptr + d) * sign
    if STATISTICS:  # a pixel of several windows belongs to the last of them
        x_step = window_start(x + 1, X, OX) - x_start
        y_step = window_start(y + 1, Y, OY) - y_start
        z_step = window_start(z + 1, Z, OZ) - z_start
        shift = tl.zeros([DP], tl.float32)
        first_sum = tl.zeros([DP, J], tl.float32)
        second_sum = tl.zeros([DP, J], tl.float32)

    best = tl.zeros([DP, J], tl.float32)
    position = tl.zeros([DP, J], tl.int32) + start[None, :]
    off_x, off_y, off_z = 0, 0, 0
    for offset in range(0, wide_z * wide_y * wide_x):
        inside = (off_x < x_wide) & (off_y < y_wide) & (off_z < z_wide)
        next_x, next_y, next_z = next_offset(off_x, off_y, off_z, wide_x, wide_y)
        # past the end of its window a program reads the first pixel again, and does not use it
        if NARROW > 0:  # the next pixel is on its way while this one is multiplied
            ahead = (next_x < x_wide) & (next_y < y_wide) & (next_z < z_wide)
            at = start_at + tl.where(ahead, next_z * f_z + next_y * f_y + next_x * f_x, 0) * UNIT  # [J]
            g0, g1, g2, g3 = narrow_features(at, f_c, NARROW)
            value = narrow_project(w0, w1, w2, w3, f0, f1, f2, f3, NARROW)
            f0, f1, f2, f3 = g0, g1, g2, g3
        else:
            at = start_at + tl.where(inside, off_z * f_z + off_y * f_y + off_x * f_x, 0) * UNIT  # [J]
            value = project((split_ptr, unit), (at, f_c, C), DP, J, CC, EVEN, CHANNELS_LAST, HAS_LOW)
        if offset == 0:
            best = value
            if STATISTICS:  # about a value of the tile's own size: what is squared is the spread, not the mean
                shift = tl.sum(value, axis=1) / J
        key = tl.where(inside[None, :], value, float("-inf"))
        take = (tl.minimum(key, cap[:, None]) > best) | (key != key)
        best = tl.where(take, key, best)  # (Ψ1)
        position = tl.where(take, (start + (off_z * Y + off_y) * X + off_x)[None, :], position)
        if STATISTICS:
            counted = own & (off_x < x_step) & (off_y < y_step) & (off_z < z_step)
            apart = tl.where(counted[None, :], value - shift[:, None], 0.0)
            first_sum += apart
            second_sum = tl.fma(apart, apart, second_sum)
        off_x, off_y, off_z = next_x, next_y, next_z

    to = image * out_b + (z * out_z + y * out_y + x * out_x)[None, :] + (d if OUT_LAST else d * out_d)[:, None]
    stored = (d < D)[:, None] & own[None, :]
    tl.store(peak_ptr + to, best * sign[:, None], mask=stored)
    tl.store(position_ptr + to, position, mask=stored)
    if STATISTICS:
        count = tl.sum(tl.where(own, x_step * y_step * z_step, 0), axis=0).to(tl.float32)
        divisor = tl.maximum(count, 1.0)
        total = tl.sum(first_sum, axis=1)
        to = partial_ptr + program * 3 * DP + d
        tl.store(to, tl.zeros([DP], tl.float32) + count)
        tl.store(to + DP, (shift + total / divisor) * sign)
        tl.store(to + 2 * DP, tl.maximum(tl.sum(second_sum, axis=1) - total * (total / divisor), 0.0))


@kernel
def projection_statistics_kernel(
    partial_ptr,
    mean_ptr,
    variance_ptr,
    tiles,
    D,
    DP: tl.constexpr,
    R: tl.constexpr,
    PART: tl.constexpr,
    PDL: tl.constexpr,
):
    """Mean and biased variance (D,) of PART channels from the tiles' (count, mean, squared deviations) [tiles, 3, DP].

    R tiles at a time: the mean about the first tile's, then the deviations of the tiles' means from it (Chan et al.).
    """
    in_turn(PDL)
    d = tl.program_id(0) * PART + tl.arange(0, PART)
    about = tl.load(partial_ptr + DP + d)
    count = tl.zeros([R, PART], tl.float32)
    total = tl.zeros([R, PART], tl.float32)
    for begin in range(0, tiles, R):
        tile = begin + tl.arange(0, R)
        inside = (tile < tiles)[:, None]
        at = partial_ptr + tile.to(tl.int64)[:, None] * (3 * DP) + d[None, :]
        n = tl.load(at, mask=inside, other=0.0)
        count += n
        total += n * tl.where(inside, tl.load(at + DP, mask=inside, other=0.0) - about[None, :], 0.0)
    pixels = tl.sum(count, axis=0)
    mean = about + tl.sum(total, axis=0) / pixels
    squares = tl.zeros([R, PART], tl.float32)
    for begin in range(0, tiles, R):
        tile = begin + tl.arange(0, R)
        inside = (tile < tiles)[:, None]
        at = partial_ptr + tile.to(tl.int64)[:, None] * (3 * DP) + d[None, :]
        n = tl.load(at, mask=inside, other=0.0)
        apart = tl.where(inside, tl.load(at + DP, mask=inside, other=0.0) - mean[None, :], 0.0)
        squares += tl.load(at + 2 * DP, mask=inside, other=0.0) + n * apart * apart
    tl.store(mean_ptr + d, mean, mask=d < D)
    tl.store(variance_ptr + d, tl.sum(squares, axis=0) / pixels, mask=d < D)
