"""One walk backwards (B3-B6): a program owns I rows, streams all columns once and writes only its rows. No atomics.

S is symmetric, so one logit tile gives P_ij (this row looks at j) and P_ji (j looks at this row), and T_ij with both.
In units of the image (see `gradient`), with the spare columns y = (y | 1) and h = (h | λ - δ), λ = ∂L/∂lse (B4b; 0 if
nobody asked for lse):

    T = P_ij (h_i·y_j - δ_i + λ_i) + P_ji (h_j·y_i - δ_j + λ_j)    grad_psi_i += T_ij ψ_j    moved_i += P_ji (h_j | λ_j - δ_j)

The columns h_j are streamed in units of their class, in which moved is summed; the rows y_i and h_i, which meet them, are
turned into units of the image once. The node itself is kept out of the sums: where P_ii is nearly one, h_i·y_i - δ_i is a
difference of equal numbers. `backward_rows` adds it at the end, from the others (against_i = Σ_(j≠i) P_ij (...)) or
directly (own_i = P_ii).

Modes: WANT_PSI / WANT_MOVED are both on while K fits one chunk and ψ the registers. Otherwise the work is split: one launch
with WANT_PSI loops over the chunks of h·y inside and has one program per slice of ψ, another with WANT_MOVED has one
program per chunk. Without WANT_PSI, for a ψ that needs no gradient, there is no T.
"""

import triton
import triton.language as tl

from ..arithmetic import (
    TRANSPOSED_SHIFT,
    add_tile,
    in_turn,
    last_to_arrive,
    load_hi_lo,
    raise_to,
    split_hi_lo,
    tile_product,
    wide_product,
)
from ..launch import kernel
from .backward_rows import add_parts, finish_gradient, finish_moved
from .gradient import SPREAD

# up to this level its own rounding may enter an exponent
LEVEL = tl.constexpr(65536.0)


@triton.jit
def in_units(hi, lo, unit, PRODUCTS: tl.constexpr):
    """hi and lo [R, KP] times the powers of two unit [KP]: exact down to 2⁻²⁵."""
    scaled_hi = (hi.to(tl.float32) * unit[None, :]).to(tl.float16)
    scaled_lo = (lo.to(tl.float32) * unit[None, :]).to(tl.float16) if PRODUCTS == 3 else scaled_hi
    return scaled_hi, scaled_lo


@kernel
def walk_backward_kernel(
    # pointers: what is streamed
    psi_hi_ptr,
    psi_lo_ptr,
    bias_ptr,
    factor_ptr,
    y_hi_ptr,
    y_lo_ptr,
    h_hi_ptr,
    h_lo_ptr,
    lse_ptr,
    level_ptr,
    drop_ptr,
    spread_ptr,
    # pointers: what the last step reads and writes
    centre_ptr,
    scale_ptr,
    alone_ptr,
    h_scale_ptr,
    unit_ptr,
    g_ptr,
    reach_ptr,
    given_grad_ptr,
    given_grad_psi_ptr,
    lse_grad_ptr,
    given_grad_bias_ptr,
    # pointers: sums of a part
    part_psi_ptr,
    part_moved_ptr,
    part_against_ptr,
    part_own_ptr,
    counter_ptr,
    # sizes
    N,
    D,
    K,
    KC,
    pad_units,
    chunks,
    program_chunks,
    parts,
    part_tiles,
    batch,
    add_grad,
    slices,
    depths,
    # strides
    grad_b: tl.int64,
    grad_k: tl.int64,
    grad_n: tl.int64,
    psi_b: tl.int64,
    psi_d: tl.int64,
    psi_n: tl.int64,
    bias_b: tl.int64,
    bias_n: tl.int64,
    # constants
    DP: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    KP: tl.constexpr,
    PAD: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    J: tl.constexpr,
    LOGIT_PRODUCTS: tl.constexpr,
    VALUE_PRODUCTS: tl.constexpr,
    WANT_PSI: tl.constexpr,
    WANT_MOVED: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    ONE_PART: tl.constexpr,
    OF_PSI: tl.constexpr,
    OF_LSE: tl.constexpr,
    OF_BIAS: tl.constexpr,
    PSI_AXIS: tl.constexpr,
    GRAD_AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Σ_j≠i T_ij ψ̃_j, Σ_j≠i P_ji (h_j | λ_j - δ_j), against_i and own_i for I rows and one part of the columns of an image.

    ψ̃ hi, lo [B, n_pad, DP] (WIDE: slices·DP); y and h hi, lo [B, C, n_pad, KP]; lse, level, drop [B, n_pad];
    spread [B, n_pad/J, 2].
    ONE_PART: the program has all of the columns and classes, and finishes its rows (`finish_moved`, `finish_gradient`);
    else the sums are left in part_psi [parts, B, n_pad, DP], part_moved [parts, B, C, n_pad, KP], part_against and
    part_own [parts, B, n_pad], and the last program of the row tile with WANT_MOVED adds and finishes them.
    """
    in_turn(PDL)
    n_pad = pad_units * PAD
    width = DP
    if WIDE:
        width = DP * slices
    row_tiles = tl.cdiv(N, I)
    program = tl.program_id(0).to(tl.int64)
    part = (program % parts).to(tl.int32)
    own_chunk = (program // parts) % program_chunks  # of the classes; a slice of ψ where a wide one is wanted
    row_tile = ((program // (parts * program_chunks)) % row_tiles).to(tl.int32)
    image = program // (parts * program_chunks * row_tiles)
    i = row_tile * I + tl.arange(0, I)
    j = tl.arange(0, J)
    d = tl.arange(0, DP)
    column = tl.arange(0, KP)
    hi_ptr = psi_hi_ptr + image * n_pad * width
    lo_ptr = psi_lo_ptr + image * n_pad * width
    bias_ptr += image * n_pad
    lse_ptr += image * n_pad
    level_ptr += image * n_pad
    drop_ptr += image * n_pad
    spread_ptr += image * (n_pad // J) * 2
    chunk_size = n_pad.to(tl.int64) * KP
    fields = (image * chunks + own_chunk) * chunk_size
    sigma = tl.load(factor_ptr + image * 4)

    if WIDE:
        d += own_chunk * DP
    else:
        at_rows = i[:, None] * DP + d[None, :]
        row_hi, row_lo = load_hi_lo(hi_ptr, lo_ptr, at_rows, LOGIT_PRODUCTS)  # [I, DP]
    at_row_fields = i[:, None] * KP + column[None, :]
    if WANT_PSI and ONE_CHUNK:
        row_y_hi, row_y_lo = load_hi_lo(y_hi_ptr + fields, y_lo_ptr + fields, at_row_fields, VALUE_PRODUCTS)  # [I, KP]
        row_h_hi, row_h_lo = load_hi_lo(h_hi_ptr + fields, h_lo_ptr + fields, at_row_fields, VALUE_PRODUCTS)
        unit = tl.load(unit_ptr + (image * chunks + own_chunk) * 2 * KP + column)
        row_y_hi, row_y_lo = in_units(row_y_hi, row_y_lo, unit, VALUE_PRODUCTS)
        row_h_hi, row_h_lo = in_units(row_h_hi, row_h_lo, unit * TRANSPOSED_SHIFT, VALUE_PRODUCTS)  # |h| ≤ 1
    row_bias = tl.load(bias_ptr + i)
    row_lse = tl.load(lse_ptr + i)
    row_level = tl.load(level_ptr + i)
    row_low = tl.min(tl.where(row_level == float("-inf"), float("inf"), row_level), axis=0)  # there P_ji is zero
    row_high = tl.max(row_level, axis=0)

    sum_psi = tl.zeros([I, DP], tl.float32)
    moved = tl.zeros([I, KP], tl.float32)
    against = tl.zeros([I], tl.float32)
    own = tl.zeros([I], tl.float32)
    first = part * part_tiles
    last = tl.minimum(first + part_tiles, tl.cdiv(N, J))
    tl.assume(first < last)  # no part is empty; with an empty loop ptxas would serialise the matrix instructions
    for tile in range(first, last):
        # (W1) bit for bit as in walk_forward
        if WIDE:
            logit = wide_product(hi_ptr, lo_ptr, i, tile * J + j, width, depths, DEPTH, LOGIT_PRODUCTS)
        else:
            at_psi = (tile * J + j)[:, None] * DP + d[None, :]
            col_hi, col_lo = load_hi_lo(hi_ptr, lo_ptr, at_psi, LOGIT_PRODUCTS)  # [J, DP]
            logit = tile_product(row_hi, row_lo, tl.trans(col_hi), tl.trans(col_lo), LOGIT_PRODUCTS)
        col_lse = tl.load(lse_ptr + tile * J + j)
        col_bias = tl.load(bias_ptr + tile * J + j)
        look = tl.exp2(tl.fma(logit, sigma, col_bias[None, :]) - row_lse[:, None])  # (B3) P_ij
        col_drop = tl.load(drop_ptr + tile * J + j)
        col_low = tl.load(spread_ptr + tile * 2)
        col_high = tl.load(spread_ptr + tile * 2 + 1)
        low = tl.minimum(col_low, row_low)
        high = tl.maximum(col_high, row_high)
        if (high - low < SPREAD) & (high < LEVEL) & (low > -LEVEL):
            middle = tl.where(col_low <= col_high, 0.5 * (col_low + col_high), row_low)
            rise = tl.exp2(row_level - middle) * TRANSPOSED_SHIFT
            back = look * rise[:, None] * col_drop[None, :]  # (B3) 2¹³ P_ji
        else:
            # the other order of the small products may round S_ji above S_ij: never a weight above one
            above = tl.minimum(tl.fma(logit, sigma, row_bias[:, None]) - col_lse[None, :], 0.0)
            back = tl.exp2(above) * TRANSPOSED_SHIFT  # (B3) 2¹³ P_ji
        if (tile * J < (row_tile + 1) * I) & (row_tile * I < (tile + 1) * J):
            diagonal = i[:, None] == (tile * J + j)[None, :]
            own += tl.sum(tl.where(diagonal, look, 0.0), axis=1)
            look = tl.where(diagonal, 0.0, look)
            back = tl.where(diagonal, 0.0, back)

        if ONE_CHUNK:
            at_y = (tile * J + j)[:, None] * KP + column[None, :]
            h_hi, h_lo = load_hi_lo(h_hi_ptr + fields, h_lo_ptr + fields, at_y, VALUE_PRODUCTS)  # [J, KP]
        if WANT_PSI:
            if ONE_CHUNK:
                y_hi, y_lo = load_hi_lo(y_hi_ptr + fields, y_lo_ptr + fields, at_y, VALUE_PRODUCTS)
                # 2¹³ (h_i·y_j - δ_i + λ_i) and h_j·y_i - δ_j + λ_j
                ahead = tile_product(row_h_hi, row_h_lo, tl.trans(y_hi), tl.trans(y_lo), VALUE_PRODUCTS)
                behind = tile_product(row_y_hi, row_y_lo, tl.trans(h_hi), tl.trans(h_lo), VALUE_PRODUCTS)
            else:
                ahead = tl.zeros([I, J], tl.float32)
                behind = tl.zeros([I, J], tl.float32)
                at_y = (tile * J + j)[:, None] * KP + column[None, :]
                for chunk in range(0, chunks):
                    other = (image * chunks + chunk) * chunk_size
                    unit = tl.load(unit_ptr + (image * chunks + chunk) * 2 * KP + column)
                    a_hi, a_lo = load_hi_lo(h_hi_ptr + other, h_lo_ptr + other, at_row_fields, VALUE_PRODUCTS)
                    b_hi, b_lo = load_hi_lo(y_hi_ptr + other, y_lo_ptr + other, at_y, VALUE_PRODUCTS)
                    b_hi, b_lo = in_units(b_hi, b_lo, unit, VALUE_PRODUCTS)
                    made = tile_product(a_hi, a_lo, tl.trans(b_hi), tl.trans(b_lo), VALUE_PRODUCTS)
                    ahead = add_tile(ahead, made)
                    a_hi, a_lo = load_hi_lo(y_hi_ptr + other, y_lo_ptr + other, at_row_fields, VALUE_PRODUCTS)
                    b_hi, b_lo = load_hi_lo(h_hi_ptr + other, h_lo_ptr + other, at_y, VALUE_PRODUCTS)
                    b_hi, b_lo = in_units(b_hi, b_lo, unit, VALUE_PRODUCTS)
                    made = tile_product(a_hi, a_lo, tl.trans(b_hi), tl.trans(b_lo), VALUE_PRODUCTS)
                    behind = add_tile(behind, made)
                ahead *= TRANSPOSED_SHIFT
            half = look * ahead
            against += tl.sum(half, axis=1)
            T = tl.fma(back, behind, half)  # (B4, B4b), 2¹³ T
            if WIDE:
                at_psi = (tile * J + j)[:, None] * width + d[None, :]
                col_hi, col_lo = load_hi_lo(hi_ptr, lo_ptr, at_psi, LOGIT_PRODUCTS)  # [J, DP] of the program's slice
            T_hi, T_lo = split_hi_lo(T, col_hi.dtype, LOGIT_PRODUCTS)
            sum_psi = add_tile(sum_psi, tile_product(T_hi, T_lo, col_hi, col_lo, LOGIT_PRODUCTS))  # (B5)
        if WANT_MOVED:
            if not ONE_CHUNK:
                at_y = (tile * J + j)[:, None] * KP + column[None, :]
                h_hi, h_lo = load_hi_lo(h_hi_ptr + fields, h_lo_ptr + fields, at_y, VALUE_PRODUCTS)
            back_hi, back_lo = split_hi_lo(back, tl.float16, VALUE_PRODUCTS)
            moved = add_tile(moved, tile_product(back_hi, back_lo, h_hi, h_lo, VALUE_PRODUCTS))  # (B6)

    rows_ptr = (y_hi_ptr, y_lo_ptr, h_hi_ptr, h_lo_ptr, scale_ptr, unit_ptr, g_ptr, reach_ptr)
    nodes_ptr = (psi_hi_ptr, psi_lo_ptr, alone_ptr, factor_ptr, centre_ptr, h_scale_ptr, lse_grad_ptr)
    given_grad = (given_grad_ptr, grad_b, grad_k, grad_n, add_grad)
    grad_psi = (given_grad_psi_ptr, psi_b, psi_d, psi_n)
    grad_bias = (given_grad_bias_ptr, bias_b, bias_n)
    if ONE_PART:
        sum_t, itself, row_sum = finish_moved(
            (moved, own), rows_ptr, given_grad, (image, 0, i), (chunks, n_pad, N, K, KC), KP, VALUE_PRODUCTS, GRAD_AXIS
        )
        if WANT_PSI:
            finish_gradient(
                (sum_psi, sum_t, against, itself, own),
                nodes_ptr,
                grad_psi,
                grad_bias,
                (image, i, 0),
                (n_pad, N, D, width),
                DP,
                LOGIT_PRODUCTS,
                PSI_AXIS,
                OF_LSE,
                OF_BIAS,
            )
        raise_to(reach_ptr + image * chunks * KP + KC, tl.max(row_sum, axis=0))
    else:
        to = (part.to(tl.int64) * batch + image) * n_pad + i
        if WANT_PSI:
            tl.store(part_psi_ptr + to[:, None] * width + d[None, :], sum_psi)
            if own_chunk == 0:
                tl.store(part_against_ptr + to, against)
        if WANT_MOVED:
            if own_chunk == 0:
                tl.store(part_own_ptr + to, own)
            to = ((part.to(tl.int64) * batch + image) * chunks + own_chunk) * n_pad + i
            tl.store(part_moved_ptr + to[:, None] * KP + column[None, :], moved)
            if last_to_arrive(counter_ptr + image * row_tiles + row_tile, parts * program_chunks):
                add_parts(
                    (part_psi_ptr, part_moved_ptr, part_against_ptr, part_own_ptr),
                    rows_ptr,
                    nodes_ptr,
                    given_grad,
                    grad_psi,
                    grad_bias,
                    (
                        image,
                        row_tile * I,
                        tl.minimum((row_tile + 1) * I, N),
                        counter_ptr + image * row_tiles + row_tile,
                    ),
                    (chunks, n_pad, N, K, KC, D, width, slices, parts, batch),
                    DP,
                    WIDE,
                    KP,
                    LOGIT_PRODUCTS,
                    VALUE_PRODUCTS,
                    OF_PSI,
                    PSI_AXIS,
                    GRAD_AXIS,
                    OF_LSE,
                    OF_BIAS,
                )
