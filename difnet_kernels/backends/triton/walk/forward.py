"""One walk (W1-W4) without storing P. A program owns I rows of one image and streams a range of the columns in tiles
of J.

Every operand of the stream is padded to whole tiles (`prepare`, `state`), so the loop has no mask: columns past N carry a
bias of -∞. The columns are summed in parts (`split`), each from zero, and the parts are added in their order: by the
program itself if it has them all, else by the last of the row tile's programs to end. So the bits do not depend on who
adds. A wide K runs one program per chunk of classes; a wide ψ is read in pieces (`wide_product`).

The running maximum starts just below the row's own logit S_ii, nearly always the row's maximum, so it is right from the
first tile wherever that tile lies. The rescale of acc is not guarded by a branch: acc is 32 columns, the block-wide
vote that a branch needs costs more than the multiplications it would save.
"""

import triton
import triton.language as tl

from ..arithmetic import (
    blend,
    class_columns,
    field_at,
    in_turn,
    last_to_arrive,
    load_hi_lo,
    mix,
    split_hi_lo,
    tile_product,
    wide_product,
)
from ..launch import kernel
from .state import store_state

ADDED = tl.constexpr(16)  # rows whose parts are added at a time


@triton.jit
def add_part(total, top, acc, peak):
    """(Σ 2^(x-top) y, top) of the parts before and one more: the sum of both, and the higher of the maxima."""
    higher = tl.maximum(top, peak)
    return total * tl.exp2(top - higher)[:, None] + acc * tl.exp2(peak - higher)[:, None], higher


@kernel
def walk_forward_kernel(
    # pointers: what is streamed
    psi_hi_ptr,
    psi_lo_ptr,
    bias_ptr,
    floor_ptr,
    factor_ptr,
    y_hi_ptr,
    y_lo_ptr,
    # pointers: what the last step reads and writes
    scale_ptr,
    state_ptr,
    next_hi_ptr,
    next_lo_ptr,
    seed_ptr,
    given_mu_ptr,
    given_beta_ptr,
    walked_ptr,
    lse_ptr,
    # pointers: sums of a part
    part_ptr,
    part_peak_ptr,
    counter_ptr,
    # sizes
    N,
    K,
    KC,
    pad_units,
    chunks,
    parts,
    part_tiles,
    batch,
    step,
    kept,
    slices,
    depths,
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
    SHIFT: tl.constexpr,
    ALL_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """acc_i = Σ_j 2^(x_ij - peak_i) [y_j | 1] for I rows of one image and one chunk of classes.

    x = log2(e)·S (W1) from ψ̃ hi, lo [B, n_pad, DP] (WIDE: slices·DP); y hi, lo [B, C, n_pad, KP]. ALL_PARTS: the program has
    all parts in turn, adds and finishes them (`finish_walk`); else it has one, and leaves acc in part
    [parts, B, C, n_pad, KP] and peak in part_peak [parts, B, C, n_pad] for the last of the parts' programs.
    """
    in_turn(PDL)
    n_pad = pad_units * PAD
    width = DP
    if WIDE:
        width = DP * slices
    row_tiles = tl.cdiv(N, I)
    program = tl.program_id(0).to(tl.int64)
    if ALL_PARTS:
        first_part, last_part = 0, parts
    else:
        own_part = (program % parts).to(tl.int32)
        first_part, last_part = own_part, own_part + 1
        program = program // parts
    chunk = program % chunks
    row_tile = ((program // chunks) % row_tiles).to(tl.int32)
    image = program // (chunks * row_tiles)
    i = row_tile * I + tl.arange(0, I)
    j = tl.arange(0, J)
    d = tl.arange(0, DP)
    column = tl.arange(0, KP)
    psi_hi_ptr += image * n_pad * width
    psi_lo_ptr += image * n_pad * width
    bias_ptr += image * n_pad
    y_hi_ptr += (image * chunks + chunk) * n_pad * KP
    y_lo_ptr += (image * chunks + chunk) * n_pad * KP
    sigma = tl.load(factor_ptr + image * 4)

    if not WIDE:
        at_rows = i[:, None] * DP + d[None, :]
        row_hi, row_lo = load_hi_lo(psi_hi_ptr, psi_lo_ptr, at_rows, LOGIT_PRODUCTS)  # [I, DP]
    floor = tl.load(floor_ptr + image * n_pad + i)  # [I]
    total = tl.zeros([I, KP], tl.float32)
    top = floor
    columns = tl.cdiv(N, J)
    for part in range(first_part, last_part):
        peak = floor
        acc = tl.zeros([I, KP], tl.float32)
        first = part * part_tiles
        last = tl.minimum(first + part_tiles, columns)
        tl.assume(first < last)  # no part is empty; with an empty loop ptxas would serialise the matrix instructions
        for tile in range(first, last):
            at_y = (tile * J + j)[:, None] * KP + column[None, :]
            # (W1) walk_backward repeats these lines with the same operands in the same order
            if WIDE:
                logit = wide_product(psi_hi_ptr, psi_lo_ptr, i, tile * J + j, width, depths, DEPTH, LOGIT_PRODUCTS)
            else:
                at_psi = (tile * J + j)[:, None] * DP + d[None, :]  # 32-bit inside an image: `refuses` caps N·DP
                col_hi, col_lo = load_hi_lo(psi_hi_ptr, psi_lo_ptr, at_psi, LOGIT_PRODUCTS)  # [J, DP]
                logit = tile_product(row_hi, row_lo, tl.trans(col_hi), tl.trans(col_lo), LOGIT_PRODUCTS)
            bias = tl.load(bias_ptr + tile * J + j)
            x = tl.fma(logit, sigma, bias[None, :])  # [I, J] log2 units
            higher = tl.maximum(peak, tl.max(x, axis=1) - SHIFT)
            weight = tl.exp2(x - higher[:, None])
            # (W2) acc += weight @ y; the column of ones leaves the row sum in the spare column
            y_hi, y_lo = load_hi_lo(y_hi_ptr, y_lo_ptr, at_y, VALUE_PRODUCTS)  # [J, KP]
            weight_hi, weight_lo = split_hi_lo(weight, tl.float16, VALUE_PRODUCTS)
            made = tile_product(weight_hi, weight_lo, y_hi, y_lo, VALUE_PRODUCTS)
            acc = tl.fma(acc, tl.exp2(peak - higher)[:, None], made)
            peak = higher
        if ALL_PARTS:
            total, top = add_part(total, top, acc, peak)
        else:
            to = ((own_part.to(tl.int64) * batch + image) * chunks + chunk) * n_pad + i
            tl.store(part_ptr + to[:, None] * KP + column[None, :], acc)
            tl.store(part_peak_ptr + to, peak)

    if ALL_PARTS:
        finish_walk(
            (total, top),
            (scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr, walked_ptr, lse_ptr),
            (given_mu_ptr, given_beta_ptr, step, kept),
            (image, chunk, i),
            (batch, chunks, n_pad, N, K, KC),
            KP,
            SHIFT,
            VALUE_PRODUCTS,
        )
    elif last_to_arrive(counter_ptr + (image * row_tiles + row_tile) * chunks + chunk, parts):
        part_rows = batch.to(tl.int64) * chunks * n_pad
        for row in range(row_tile * I, tl.minimum((row_tile + 1) * I, N), ADDED):
            n = row + tl.arange(0, ADDED)
            at = (image * chunks + chunk) * n_pad + n
            finish_walk(
                add_parts(part_ptr, part_peak_ptr, at, parts, part_rows, KP),
                (scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr, walked_ptr, lse_ptr),
                (given_mu_ptr, given_beta_ptr, step, kept),
                (image, chunk, n),
                (batch, chunks, n_pad, N, K, KC),
                KP,
                SHIFT,
                VALUE_PRODUCTS,
            )


@triton.jit
def add_parts(part_ptr, peak_ptr, row, parts, part_rows, KP: tl.constexpr):
    """(Σ 2^(x-top) y, top) of ADDED rows, from the parts [parts, part_rows, KP] in their order, as a program that has them all
    adds them."""
    column = tl.arange(0, KP)
    top = tl.load(peak_ptr + row)
    total = tl.zeros([ADDED, KP], tl.float32)
    for part in range(0, parts):
        peak = tl.load(peak_ptr + part * part_rows + row)
        acc = tl.load(part_ptr + (part * part_rows + row)[:, None] * KP + column[None, :])
        total, top = add_part(total, top, acc, peak)
    return total, top


@triton.jit
def finish_walk(sums, pointers, gates, at, sizes, KP: tl.constexpr, SHIFT: tl.constexpr, VALUE_PRODUCTS: tl.constexpr):
    """W2-W4 for rows whose sums are complete: acc [R, KP] = Σ 2^(x-peak) y with the row sum in the spare column.

    Writes walk `kept` of walked [.., B, N, K] and row_lse [.., B, N] (log2 units, centred logits), and the next state
    with its hi and lo. One
    64-bit base per field and 32-bit offsets inside an image: 64-bit tiles of addresses would not fit the registers.
    """
    acc, peak = sums
    scale_ptr, state_ptr, hi_ptr, lo_ptr, seed_ptr, walked_ptr, lse_ptr = pointers
    mu_ptr, beta_ptr, step, kept = gates
    image, chunk, n = at
    batch, chunks, n_pad, N, K, KC = sizes
    column, label, is_class, spare = class_columns(chunk, K, KC, KP)
    field = (image * chunks + chunk) * n_pad * KP
    at_tile = n[:, None] * KP + column[None, :]
    rows = n < N
    inside = rows[:, None] & is_class[None, :]
    total = tl.sum(tl.where(spare[None, :], acc, 0.0), axis=1)
    scale = tl.load(scale_ptr + (image * chunks + chunk) * KP + column)
    walked = acc / total[:, None] / scale[None, :]  # (W2); the scale is a power of two
    first_row = (kept.to(tl.int64) * batch + image) * N
    tl.store(walked_ptr + first_row * K + (n[:, None] * K + label[None, :]), walked, mask=inside)
    if chunk == 0:
        # SHIFT leaves before the logarithm: log2 is exact at 1, where a one-hot row is
        tl.store(lse_ptr + first_row + n, (peak + SHIFT) + tl.log2(total * (2.0 ** (-SHIFT))), mask=rows)
    y = tl.load(state_ptr + field + at_tile)
    s = tl.load(seed_ptr + field + at_tile)
    mixed = mix(walked, s, tl.load(mu_ptr + step))  # (W3)
    y = blend(mixed, y, tl.load(beta_ptr + step))  # (W4)
    y = tl.where(inside, y, 0.0)
    tl.store(state_ptr + field + at_tile, y)
    store_state(hi_ptr + field, lo_ptr + field, at_tile, y * scale[None, :], spare, VALUE_PRODUCTS)


@kernel
def state_store_kernel(
    # pointers
    state_ptr,
    given_out_ptr,
    # sizes
    N,
    K,
    KC,
    pad_units,
    chunks,
    # strides
    out_b: tl.int64,
    out_k: tl.int64,
    out_n: tl.int64,
    # constants
    KP: tl.constexpr,
    PAD: tl.constexpr,
    R: tl.constexpr,
    AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """yᵗ in the caller's layout: state [B, C, n_pad, KP] -> out (B, K, N). Apart from the walk, whose registers have no
    room for the addresses."""
    in_turn(PDL)
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    chunk = (program // row_blocks) % chunks
    image = program // (row_blocks * chunks)
    n = (program % row_blocks) * R + tl.arange(0, R)
    column, label, is_class, _ = class_columns(chunk, K, KC, KP)
    y = tl.load(state_ptr + ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :])
    to = field_at(given_out_ptr, image, out_b, label, out_k, n, out_n, AXIS)
    tl.store(to, y.to(given_out_ptr.dtype.element_ty), mask=(n < N)[:, None] & is_class[None, :])
