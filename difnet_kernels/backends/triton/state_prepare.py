"""y (B, K, N), any strides -> what the walks stream: node-major fp16 halves, scaled per class, with a column of ones.

A chunk holds KC classes and a spare column at KC (KP ≥ KC + 1 columns in all). y is scaled by a power of two per
image and class that brings |seed| and |y⁰| to at most 1: every later state is a convex combination of the two, so one
scale serves the whole cascade. Layouts: state [B, C, n_pad, KP] fp32, halves likewise fp16, scale [B, C, KP].
"""

import triton
import triton.language as tl

from .arithmetic import blend, class_columns, field_at, low_half, power_of_two_below

# sizes, strides and the caller's pointers: a new value must not compile a new kernel
_PLAIN = [
    "source_ptr", "given_seed_ptr", "out_ptr", "KC", "N", "K", "blocks", "block_nodes", "pad_units", "chunks",
    "step", "batch",
    "seed_b", "seed_k", "seed_n", "state_b", "state_k", "state_n", "out_b", "out_k", "out_n",
]  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def class_reach_kernel(
    seed_ptr, seed_b: tl.int64, seed_k: tl.int64, seed_n: tl.int64, state_ptr, state_b: tl.int64, state_k: tl.int64,
    state_n: tl.int64, partial_ptr, N, K, blocks, block_nodes, chunks,
    KC, KP: tl.constexpr, R: tl.constexpr, HAS_STATE: tl.constexpr, SEED_AXIS: tl.constexpr, STATE_AXIS: tl.constexpr,
):  # fmt: skip
    """max |seed|, |state| per class over one block of nodes -> partial [B, C, blocks, KP]."""
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    chunk = (program // blocks) % chunks
    image = program // (blocks * chunks)
    column, label, is_class, _ = class_columns(chunk, K, KC, KP)
    begin = block * block_nodes
    end = tl.minimum(begin + block_nodes, N)
    reach = tl.zeros([KP], tl.float32)
    for step in range(0, block_nodes, R):
        n = begin + step + tl.arange(0, R)
        inside = (n[:, None] < end) & is_class[None, :]
        at = field_at(seed_ptr, image, seed_b, label, seed_k, n, seed_n, SEED_AXIS)
        x = tl.load(at, mask=inside, other=0.0)
        reach = tl.maximum(reach, tl.max(tl.abs(x.to(tl.float32)), axis=0))
        if HAS_STATE:
            at = field_at(state_ptr, image, state_b, label, state_k, n, state_n, STATE_AXIS)
            y = tl.load(at, mask=inside, other=0.0)
            reach = tl.maximum(reach, tl.max(tl.abs(y.to(tl.float32)), axis=0))
    tl.store(partial_ptr + program * KP + column, reach)


@triton.jit
def store_state_halves(hi_ptr, lo_ptr, at, scaled, spare, VALUE_PRODUCTS: tl.constexpr):
    """fp16 halves of a scaled state tile, with ones in the spare column (the row sum of P, and the 1 that meets -δ)."""
    scaled = tl.where(spare[None, :], 1.0, scaled)
    hi = scaled.to(tl.float16)
    tl.store(hi_ptr + at, hi)
    if VALUE_PRODUCTS == 3:
        tl.store(lo_ptr + at, low_half(scaled, hi))


@triton.jit(do_not_specialize=_PLAIN)
def state_prepare_kernel(
    source_ptr, state_b: tl.int64, state_k: tl.int64, state_n: tl.int64, given_seed_ptr, seed_b: tl.int64,
    seed_k: tl.int64, seed_n: tl.int64, partial_ptr, state_ptr, seed_ptr, hi_ptr, lo_ptr, scale_ptr, N, K, blocks,
    pad_units, chunks,
    KC, KP: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr, VALUE_PRODUCTS: tl.constexpr,
    SEED_AXIS: tl.constexpr, STATE_AXIS: tl.constexpr,
):  # fmt: skip
    """One block of nodes: y⁰ and the seed in fp32, the halves of y⁰, and (first block) the scale of every class."""
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    chunk = (program // row_blocks) % chunks
    image = program // (row_blocks * chunks)
    column, label, is_class, spare = class_columns(chunk, K, KC, KP)
    n = (program % row_blocks) * R + tl.arange(0, R)
    reach = tl.zeros([KP], tl.float32)
    for block in range(0, blocks):
        reach = tl.maximum(reach, tl.load(partial_ptr + ((image * chunks + chunk) * blocks + block) * KP + column))
    scale = 0.5 / power_of_two_below(reach)
    inside = (n[:, None] < N) & is_class[None, :]
    at = field_at(source_ptr, image, state_b, label, state_k, n, state_n, STATE_AXIS)
    y = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    to = ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :]
    tl.store(state_ptr + to, y)
    at = field_at(given_seed_ptr, image, seed_b, label, seed_k, n, seed_n, SEED_AXIS)
    tl.store(seed_ptr + to, tl.load(at, mask=inside, other=0.0).to(tl.float32))
    store_state_halves(hi_ptr, lo_ptr, to, y * scale[None, :], spare, VALUE_PRODUCTS)
    if program % row_blocks == 0:
        tl.store(scale_ptr + (image * chunks + chunk) * KP + column, scale)


@triton.jit
def finish_walk(
    acc, peak, scale_ptr, state_ptr, hi_ptr, lo_ptr, seed_ptr, mu_ptr, beta_ptr, walked_ptr, lse_ptr,
    image, chunk, chunks, batch, step, n, n_pad, N, K, KC,
    KP: tl.constexpr, SHIFT: tl.constexpr, VALUE_PRODUCTS: tl.constexpr,
):  # fmt: skip
    """W2-W4 for rows whose sums are complete: acc [R, KP] = Σ 2^(x-peak) y with the row sum in the spare column.

    Writes walked, row_lse (log2 units, centred logits), and the next state with its halves. One 64-bit base per field
    and 32-bit offsets inside an image: 64-bit tiles of addresses would not fit the registers.
    """
    column, label, is_class, spare = class_columns(chunk, K, KC, KP)
    field = (image * chunks + chunk) * n_pad * KP
    at = n[:, None] * KP + column[None, :]
    rows = n < N
    inside = rows[:, None] & is_class[None, :]
    total = tl.sum(tl.where(spare[None, :], acc, 0.0), axis=1)
    scale = tl.load(scale_ptr + (image * chunks + chunk) * KP + column)
    walked = acc / total[:, None] / scale[None, :]  # (W2); the scale is a power of two
    first_row = (step.to(tl.int64) * batch + image) * N
    tl.store(walked_ptr + first_row * K + (n[:, None] * K + label[None, :]), walked, mask=inside)
    if chunk == 0:
        # SHIFT leaves before the logarithm: log2 is exact at 1, where a one-hot row is
        tl.store(lse_ptr + first_row + n, (peak + SHIFT) + tl.log2(total * (2.0 ** (-SHIFT))), mask=rows)
    y = tl.load(state_ptr + field + at)
    s = tl.load(seed_ptr + field + at)
    y = blend(walked, s, y, tl.load(mu_ptr + step), tl.load(beta_ptr + step))  # (W3, W4)
    y = tl.where(inside, y, 0.0)
    tl.store(state_ptr + field + at, y)
    store_state_halves(hi_ptr + field, lo_ptr + field, at, y * scale[None, :], spare, VALUE_PRODUCTS)


@triton.jit(do_not_specialize=_PLAIN)
def state_store_kernel(
    state_ptr, out_ptr, out_b: tl.int64, out_k: tl.int64, out_n: tl.int64, N, K, pad_units, chunks,
    KC, KP: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """yᵗ in the caller's layout. Apart from the walk, whose registers have no room for the addresses."""
    n_pad = pad_units * PAD
    row_blocks = n_pad // R
    program = tl.program_id(0).to(tl.int64)
    chunk = (program // row_blocks) % chunks
    image = program // (row_blocks * chunks)
    n = (program % row_blocks) * R + tl.arange(0, R)
    column, label, is_class, _ = class_columns(chunk, K, KC, KP)
    y = tl.load(state_ptr + ((image * chunks + chunk) * n_pad + n[:, None]) * KP + column[None, :])
    to = field_at(out_ptr, image, out_b, label, out_k, n, out_n, AXIS)
    tl.store(to, y.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & is_class[None, :])
