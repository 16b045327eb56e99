"""The last step of a walk's backward, for rows whose sums are complete: B5, B6, B8 and the node's own term.

The spare column of moved holds Σ_(j≠i) P_ji (λ_j - δ_j), so moved_i·(y_i | 1) is the sum of the others' part of T_ij. With
the node itself it is ∂L/∂b_i (B8), and it carries the centre that ψ̃ left out (B5).

The node's own term P_ii (h_i·y_i - δ_i + λ_i) is a difference of equal numbers where P_ii is nearly one. Because
Σ_j P_ij (h_i·y_j - δ_i + λ_i) = λ_i (B4b), it is λ_i - against_i, which does not cancel; where P_ii is below one half, the
direct product is the better of the two. own_i = P_ii adds h_i to moved.

A row can look at another node alone, too, and where that node is an outlier, its large ψ_j multiplies what h_i·y_j - δ_i
leaves of equal numbers. In an image with outliers `gradient` finds such rows, and their term becomes λ_i minus the others'.
"""

import triton
import triton.language as tl

from ..arithmetic import TRANSPOSED_SHIFT, class_columns, field_at, field_tile, raise_to, split_hi_lo

ADDED = tl.constexpr(16)  # rows whose parts are added at a time


@triton.jit
def finish_moved(
    sums, pointers, given, at, sizes, KP: tl.constexpr, VALUE_PRODUCTS: tl.constexpr, GRAD_AXIS: tl.constexpr
):
    """(B6) g [R, KP] += Σ_j P_ji h_j, plus the gradient that the caller gave for this step; its reach.

    Returns, [R] each: 2¹³ Σ_(j≠i) P_ji (h_j·y_i - δ_j + λ_j), 2¹³ P_ii (h_i·y_i - δ_i + λ_i) and Σ_k |g_k|/scale_k.
    """
    moved, own = sums
    y_hi_ptr, y_lo_ptr, h_hi_ptr, h_lo_ptr, scale_ptr, unit_ptr, g_ptr, reach_ptr = pointers
    grad_ptr, grad_b, grad_k, grad_n, add_grad = given
    image, chunk, n = at
    chunks, n_pad, N, K, KC = sizes
    column, label, is_class, _ = class_columns(chunk, K, KC, KP)
    at_tile = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
    y = tl.load(y_hi_ptr + at_tile).to(tl.float32)
    h = tl.load(h_hi_ptr + at_tile).to(tl.float32)
    if VALUE_PRODUCTS == 3:
        y += tl.load(y_lo_ptr + at_tile).to(tl.float32)
        h += tl.load(h_lo_ptr + at_tile).to(tl.float32)
    at_class = (image * chunks + chunk) * KP + column
    at_unit = unit_ptr + (image * chunks + chunk) * 2 * KP + column
    y *= tl.load(at_unit)[None, :]  # now in units that meet those of h's classes
    sum_t = tl.sum(moved * y, axis=1)
    scale = tl.load(scale_ptr + at_class)[None, :]
    inside = (n < N)[:, None] & is_class[None, :]
    whole = moved / TRANSPOSED_SHIFT + own[:, None] * h
    g = tl.load(g_ptr + at_tile) + whole * tl.load(at_unit + KP)[None, :]  # (B6)
    if add_grad != 0:
        g += field_tile(grad_ptr, image, grad_b, label, grad_k, n, grad_n, inside, GRAD_AXIS)
    g = tl.where(inside, g, 0.0)
    tl.store(g_ptr + at_tile, g)
    raise_to(reach_ptr + at_class, tl.max(tl.abs(g), axis=0), is_class)
    return sum_t, TRANSPOSED_SHIFT * own * tl.sum(h * y, axis=1), tl.sum(tl.abs(g) / scale, axis=1)


@triton.jit
def finish_gradient(
    sums,
    pointers,
    given_psi,
    given_bias,
    at,
    sizes,
    DP: tl.constexpr,
    LOGIT_PRODUCTS: tl.constexpr,
    PSI_AXIS: tl.constexpr,
    OF_LSE: tl.constexpr,
    OF_BIAS: tl.constexpr,
):
    """One slice of grad_psi [R, DP] = (Σ_(j≠i) T_ij ψ̃_j + T_ii ψ̃_i) / κ + (Σ_j T_ij) c in the units of the loss, and
    OF_BIAS grad_bias [R].

    itself = T_ii / 2 = P_ii (h_i·y_i - δ_i + λ_i), against = Σ_(j≠i) P_ij (h_i·y_j - δ_i + λ_i); their sum is λ_i but for
    rounding, and λ = 0 unless OF_LSE.
    """
    sum_psi, sum_t, against, itself, own = sums
    psi_hi_ptr, psi_lo_ptr, alone_ptr, factor_ptr, centre_ptr, h_scale_ptr, lse_grad_ptr = pointers
    grad_psi_ptr, psi_b, psi_d, psi_n = given_psi
    grad_bias_ptr, bias_b, bias_n = given_bias
    image, n, part = at
    n_pad, N, D, width = sizes
    d = part * DP + tl.arange(0, DP)
    if OF_LSE:  # what the others do not bring
        against -= TRANSPOSED_SHIFT * tl.load(lse_grad_ptr + image * n_pad + n)
    at_tile = (image * n_pad + n)[:, None] * width + d[None, :]
    own_psi = tl.load(psi_hi_ptr + at_tile).to(tl.float32)
    if LOGIT_PRODUCTS == 3:
        own_psi += tl.load(psi_lo_ptr + at_tile).to(tl.float32)
    if tl.load(factor_ptr + image * 4 + 2) != 0.0:
        alone = tl.load(alone_ptr + image * n_pad + n)
        at_alone = (image * n_pad + tl.maximum(alone, 0))[:, None] * width + d[None, :]
        their_psi = tl.load(psi_hi_ptr + at_alone).to(tl.float32)
        if LOGIT_PRODUCTS == 3:
            their_psi += tl.load(psi_lo_ptr + at_alone).to(tl.float32)
        # rounded as T was, so that nothing of it stays
        hi, lo = split_hi_lo(tl.where(alone >= 0, against + itself, 0.0), psi_hi_ptr.dtype.element_ty, LOGIT_PRODUCTS)
        wrong = hi.to(tl.float32) + lo.to(tl.float32) if LOGIT_PRODUCTS == 3 else hi.to(tl.float32)
        sum_psi -= wrong[:, None] * their_psi
    itself = tl.where(own > 0.5, -against, itself)
    unit = 1.0 / (TRANSPOSED_SHIFT * tl.load(h_scale_ptr + image))
    centre = tl.load(centre_ptr + image * width + d)
    looked_at = sum_t + itself
    if OF_BIAS:
        to = grad_bias_ptr + image * bias_b + n * bias_n
        tl.store(to, (looked_at * unit).to(grad_bias_ptr.dtype.element_ty), mask=n < N)  # (B8)
    if OF_LSE:
        looked_at += TRANSPOSED_SHIFT * tl.load(lse_grad_ptr + image * n_pad + n)  # and looks: Σ_j T_ij (B4b)
    grad = (sum_psi + 2.0 * itself[:, None] * own_psi) * tl.load(factor_ptr + image * 4 + 1)  # (B5)
    grad = (grad + looked_at[:, None] * centre[None, :]) * unit
    to = field_at(grad_psi_ptr, image, psi_b, d, psi_d, n, psi_n, PSI_AXIS)
    tl.store(to, grad.to(grad_psi_ptr.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


@triton.jit
def add_parts(
    parts_ptr,
    rows_ptr,
    nodes_ptr,
    given_grad,
    grad_psi,
    grad_bias,
    at,
    sizes,
    DP: tl.constexpr,
    WIDE: tl.constexpr,
    KP: tl.constexpr,
    LOGIT_PRODUCTS: tl.constexpr,
    VALUE_PRODUCTS: tl.constexpr,
    OF_PSI: tl.constexpr,
    PSI_AXIS: tl.constexpr,
    GRAD_AXIS: tl.constexpr,
    OF_LSE: tl.constexpr,
    OF_BIAS: tl.constexpr,
):
    """Adds the parts (shapes: `walk_backward_kernel`) of one program's rows in their order, then finishes the rows, chunk by
    chunk (B6) and slice by slice (B5)."""
    part_psi_ptr, part_moved_ptr, part_against_ptr, part_own_ptr = parts_ptr
    image, begin, end, counter_ptr = at
    chunks, n_pad, N, K, KC, D, width, slices, parts, batch = sizes
    # plus the zero of the counter, which the compiler does not know: so it keeps no address of what follows in registers beside
    # the stream
    tl.debug_barrier()  # one thread has set it back
    image += tl.load(counter_ptr, volatile=True)
    reach_ptr = rows_ptr[7]
    column = tl.arange(0, KP)
    part_rows = batch.to(tl.int64) * n_pad
    for first in range(begin, end, ADDED):
        n = first + tl.arange(0, ADDED)
        against = tl.zeros([ADDED], tl.float32)
        own = tl.zeros([ADDED], tl.float32)
        for part in range(0, parts):
            row = part * part_rows + image * n_pad + n
            if OF_PSI:
                against += tl.load(part_against_ptr + row)
            own += tl.load(part_own_ptr + row)
        sum_t = tl.zeros([ADDED], tl.float32)
        itself = tl.zeros([ADDED], tl.float32)
        row_sum = tl.zeros([ADDED], tl.float32)
        for chunk in range(0, chunks):
            moved = tl.zeros([ADDED, KP], tl.float32)
            for part in range(0, parts):
                row = part * part_rows * chunks + (image * chunks + chunk) * n_pad + n
                moved += tl.load(part_moved_ptr + row[:, None] * KP + column[None, :])
            more_t, more_itself, more_sum = finish_moved(
                (moved, own),
                rows_ptr,
                given_grad,
                (image, chunk, n),
                (chunks, n_pad, N, K, KC),
                KP,
                VALUE_PRODUCTS,
                GRAD_AXIS,
            )
            sum_t += more_t
            itself += more_itself
            row_sum += more_sum
        if OF_PSI:
            for piece in range(0, slices if WIDE else 1):
                d = piece * DP + tl.arange(0, DP)
                sum_psi = tl.zeros([ADDED, DP], tl.float32)
                for part in range(0, parts):
                    row = part * part_rows + image * n_pad + n
                    sum_psi += tl.load(part_psi_ptr + row[:, None] * width + d[None, :])
                finish_gradient(
                    (sum_psi, sum_t, against, itself, own),
                    nodes_ptr,
                    grad_psi,
                    grad_bias,
                    (image, n, piece),
                    (n_pad, N, D, width),
                    DP,
                    LOGIT_PRODUCTS,
                    PSI_AXIS,
                    OF_LSE,
                    OF_BIAS,
                )
        raise_to(reach_ptr + image * chunks * KP + KC, tl.max(row_sum, axis=0))
