"""One walk (W1-W4) without storing P. A program owns I rows of one image and streams a range of the columns in tiles
of J.

Every operand of the stream is padded to whole tiles (`psi_prepare`, `state_prepare`), so the loop has no mask:
columns past N carry a bias of -∞. The columns are summed in parts (`split_plan`), each from zero, and the parts are added
in their order: by the program itself if it has them all, else by `walk_forward_combine_kernel`. So the bits do not
depend on who adds. A wide K runs one program per chunk of classes.

The running maximum starts just below the row's own logit S_ii, nearly always the row's maximum, so it is right from the
first tile wherever that tile lies. The rescale of acc is not guarded by a branch: acc is 32 columns, the block-wide
vote that a branch needs costs more than the multiplications it would save.
"""

import triton
import triton.language as tl

from .state_prepare import finish_walk

# sizes, strides and the caller's pointers: a new value must not compile a new kernel
_PLAIN = [
    "mu_ptr", "beta_ptr", "KC", "N", "K", "pad_units", "chunks", "parts", "part_tiles", "batch", "step",
]  # fmt: skip


@triton.jit
def add_part(total, top, acc, peak):
    """(Σ 2^(x-top) y, top) of the parts before and one more: the sum of both, and the higher of the maxima."""
    higher = tl.maximum(top, peak)
    return total * tl.exp2(top - higher)[:, None] + acc * tl.exp2(peak - higher)[:, None], higher


@triton.jit(do_not_specialize=_PLAIN)
def walk_forward_kernel(
    psi_hi_ptr, psi_lo_ptr, bias_ptr, floor_ptr, factor_ptr, y_hi_ptr, y_lo_ptr,
    scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr,
    mu_ptr, beta_ptr, walked_ptr, lse_ptr,
    part_ptr, part_peak_ptr, N, K, pad_units, chunks, parts, part_tiles, batch, step,
    DP: tl.constexpr, KC, KP: tl.constexpr, PAD: tl.constexpr, I: tl.constexpr, J: tl.constexpr,  # noqa: E741
    LOGIT_PRODUCTS: tl.constexpr, VALUE_PRODUCTS: tl.constexpr, SHIFT: tl.constexpr,
    FUSED: tl.constexpr,
):  # fmt: skip
    """acc_i = Σ_j 2^(x_ij - peak_i) [y_j | 1] over all parts in turn, which are added and finished here (FUSED), or over
    one, which is left in part."""
    n_pad = pad_units * PAD
    row_tiles = tl.cdiv(N, I)
    program = tl.program_id(0).to(tl.int64)
    if FUSED:
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
    psi_hi_ptr += image * n_pad * DP
    psi_lo_ptr += image * n_pad * DP
    bias_ptr += image * n_pad
    y_hi_ptr += (image * chunks + chunk) * n_pad * KP
    y_lo_ptr += (image * chunks + chunk) * n_pad * KP
    sigma = tl.load(factor_ptr + image * 2)

    at_rows = i[:, None] * DP + d[None, :]
    row_hi = tl.load(psi_hi_ptr + at_rows)  # [I, DP]
    if LOGIT_PRODUCTS == 3:
        row_lo = tl.load(psi_lo_ptr + at_rows)
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
            at_psi = (tile * J + j)[:, None] * DP + d[None, :]  # 32-bit inside an image: `refuses` caps N·DP
            at_y = (tile * J + j)[:, None] * KP + column[None, :]
            col_hi = tl.load(psi_hi_ptr + at_psi)  # [J, DP]
            # (W1) the small products first; walk_backward repeats these lines with the same operands in the same order
            if LOGIT_PRODUCTS == 3:
                col_lo = tl.load(psi_lo_ptr + at_psi)
                logit = tl.dot(row_hi, tl.trans(col_lo))
                logit = tl.dot(row_lo, tl.trans(col_hi), logit)
                logit = tl.dot(row_hi, tl.trans(col_hi), logit)
            else:
                logit = tl.dot(row_hi, tl.trans(col_hi))
            bias = tl.load(bias_ptr + tile * J + j)
            x = tl.fma(logit, sigma, bias[None, :])  # [I, J] log2 units
            higher = tl.maximum(peak, tl.max(x, axis=1) - SHIFT)
            weight = tl.exp2(x - higher[:, None])
            acc = acc * tl.exp2(peak - higher)[:, None]
            peak = higher
            # (W2) acc += weight @ y; the column of ones leaves the row sum in the spare column
            y_hi = tl.load(y_hi_ptr + at_y)  # [J, KP]
            weight_hi = weight.to(tl.float16)
            if VALUE_PRODUCTS == 3:
                y_lo = tl.load(y_lo_ptr + at_y)
                weight_lo = (weight - weight_hi.to(tl.float32)).to(tl.float16)
                acc = tl.dot(weight_hi, y_lo, acc)
                acc = tl.dot(weight_lo, y_hi, acc)
            acc = tl.dot(weight_hi, y_hi, acc)
        if FUSED:
            total, top = add_part(total, top, acc, peak)
        else:
            to = ((own_part.to(tl.int64) * batch + image) * chunks + chunk) * n_pad + i
            tl.store(part_ptr + to[:, None] * KP + column[None, :], acc)
            tl.store(part_peak_ptr + to, peak)

    if FUSED:
        finish_walk(
            total, top, scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr, mu_ptr, beta_ptr, walked_ptr, lse_ptr,
            image, chunk, chunks, batch, step, i, n_pad, N, K, KC, KP, SHIFT, VALUE_PRODUCTS,
        )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def walk_forward_combine_kernel(
    scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr,
    mu_ptr, beta_ptr, walked_ptr, lse_ptr,
    part_ptr, part_peak_ptr, N, K, pad_units, chunks, parts, batch, step,
    KC, KP: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr, VALUE_PRODUCTS: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Adds the parts of R rows in their order, as a program that has them all does, then finishes the rows."""
    n_pad = pad_units * PAD
    row_blocks = tl.cdiv(N, R)
    program = tl.program_id(0).to(tl.int64)
    row_block = program % row_blocks
    chunk = (program // row_blocks) % chunks
    image = program // (row_blocks * chunks)
    n = (row_block * R).to(tl.int32) + tl.arange(0, R)
    column = tl.arange(0, KP)
    row = (image * chunks + chunk) * n_pad + n
    stride = batch.to(tl.int64) * chunks * n_pad
    top = tl.load(part_peak_ptr + row)
    total = tl.zeros([R, KP], tl.float32)
    for part in range(0, parts):
        peak = tl.load(part_peak_ptr + part * stride + row)
        acc = tl.load(part_ptr + (part * stride + row)[:, None] * KP + column[None, :])
        total, top = add_part(total, top, acc, peak)
    finish_walk(
        total, top, scale_ptr, state_ptr, next_hi_ptr, next_lo_ptr, seed_ptr, mu_ptr, beta_ptr, walked_ptr, lse_ptr,
        image, chunk, chunks, batch, step, n, n_pad, N, K, KC, KP, SHIFT, VALUE_PRODUCTS,
    )  # fmt: skip
