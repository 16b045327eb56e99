"""Small pieces shared by the kernels: powers of two, hi and lo, class columns, addresses of a field, W3-W4."""

import triton
import triton.language as tl

# P leaves the softmax times 2⁷, so that small weights stay normal fp16 numbers. Not more: at huge logits the maximum
# minus the shift is rounded to a multiple of 8, 16, 32 ..., and from 7 that never reaches 16, where a weight of 1
# would overflow.
WEIGHT_SHIFT = tl.constexpr(7.0)
# In the backward P_ji·2¹³ and the row operand h_i·2¹³ make T·2¹³, which stays below 2¹⁵ (|h·y - δ| ≤ 2 in scaled
# units).
TRANSPOSED_SHIFT = tl.constexpr(8192.0)
# the axis of a field (B, C, N) whose stride is one; another number: neither
CHANNELS = tl.constexpr(1)
NODES = tl.constexpr(2)


@triton.jit
def in_turn(PDL: tl.constexpr):
    """The first line of every kernel. PDL: the card starts it before the kernel in front of it has ended, which saves the time
    between the two; it waits here until that one's writes are seen, and then lets the next one come. Each waits, so each sees
    what all before it wrote."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def power_of_two_below(x):
    """The largest power of two ≤ x, kept inside 2^±100; 1 for x = 0 (an all-zero class needs no scale)."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 27), 227)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    return tl.where(x == 0.0, 1.0, power)


@triton.jit
def low_of(x, hi):
    """What rounding to `hi` lost, in the same 16-bit type: hi + lo carries 22 bits of x."""
    return (x - hi.to(tl.float32)).to(hi.dtype)


@triton.jit
def split_hi_lo(x, like: tl.constexpr, PRODUCTS: tl.constexpr):
    """(hi, lo) of x in the 16-bit type `like`; lo is hi where one product is enough."""
    hi = x.to(like)
    lo = low_of(x, hi) if PRODUCTS == 3 else hi
    return hi, lo


@triton.jit
def load_hi_lo(hi_ptr, lo_ptr, at, PRODUCTS: tl.constexpr):
    hi = tl.load(hi_ptr + at)
    lo = tl.load(lo_ptr + at) if PRODUCTS == 3 else hi
    return hi, lo


@triton.jit
def raise_to(ptr, x, mask=None):
    """Raises the numbers at ptr [int32] to x ≥ 0, kept by their bits: those of floats ≥ 0 have their order, and no order of
    programs changes a maximum. A NaN is the largest."""
    tl.atomic_max(ptr, x.to(tl.int32, bitcast=True), mask=mask, sem="relaxed")


@triton.jit
def last_to_arrive(counter_ptr, programs):
    """Whether this program is the last of so many to come here: then it sees all that the others wrote before. The counter is
    zero before and after."""
    tl.debug_barrier()  # every thread has written
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def tile_product(a_hi, a_lo, b_hi, b_lo, PRODUCTS: tl.constexpr):
    """a @ b of one tile from hi and lo, summed from zero, the small products first.

    A matrix unit cuts off what does not fit its sum, always toward zero: a chain over all tiles would drift. So no sum
    stays inside the unit from tile to tile; `add_tile` adds them in fp32.
    """
    if PRODUCTS == 3:
        small = tl.dot(a_hi, b_lo)
        small = tl.dot(a_lo, b_hi, small)
        made = tl.dot(a_hi, b_hi, small)
    else:
        made = tl.dot(a_hi, b_hi)
    return made


@triton.jit
def add_tile(total, made):
    """total + made, rounded to nearest. A plain sum would be taken for the accumulator of the product and go into the
    matrix unit."""
    return tl.fma(made, 1.0, total)


@triton.jit
def wide_product(hi_ptr, lo_ptr, rows, columns, width, depths, DEPTH: tl.constexpr, PRODUCTS: tl.constexpr):
    """Rows @ columnsᵀ of one field [.., width] that is too wide for the registers, DEPTH channels at a time."""
    d = tl.arange(0, DEPTH)
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for depth in range(0, depths):
        at_rows = rows[:, None] * width + (depth * DEPTH + d)[None, :]
        at_columns = columns[:, None] * width + (depth * DEPTH + d)[None, :]
        a_hi, a_lo = load_hi_lo(hi_ptr, lo_ptr, at_rows, PRODUCTS)
        b_hi, b_lo = load_hi_lo(hi_ptr, lo_ptr, at_columns, PRODUCTS)
        total = add_tile(total, tile_product(a_hi, a_lo, tl.trans(b_hi), tl.trans(b_lo), PRODUCTS))
    return total


@triton.jit
def mix(walked, seed, mu):
    """r of math.md: mixed = μ w + (1-μ) s."""
    return mu * walked + (1.0 - mu) * seed  # (W3)


@triton.jit
def blend(mixed, state, beta):
    """y⁺ = β r + (1-β) y."""
    return beta * mixed + (1.0 - beta) * state  # (W4)


@triton.jit
def class_columns(chunk, K, KC, KP: tl.constexpr):
    """Columns of one padded chunk: (column, class index, is a class, is the spare column)."""
    column = tl.arange(0, KP)
    label = chunk * KC + column
    return column, label, (column < KC) & (label < K), column == KC


@triton.jit
def field_at(ptr, image, stride_b, channel, stride_c, n, stride_n, AXIS: tl.constexpr):
    """Addresses [R, C] of a field (B, C, N) of any strides. The compiler has to know the contiguous axis to lay
    neighbouring threads along it."""
    rows = n[:, None].to(tl.int64)
    columns = channel[None, :].to(tl.int64)
    if AXIS != NODES:
        rows *= stride_n
    if AXIS != CHANNELS:
        columns *= stride_c
    return ptr + image * stride_b + rows + columns


@triton.jit
def field_tile(ptr, image, stride_b, channel, stride_c, n, stride_n, inside, AXIS: tl.constexpr):
    """[R, C] of a field (B, C, N) of any strides, fp32, zero outside."""
    at = field_at(ptr, image, stride_b, channel, stride_c, n, stride_n, AXIS)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)
