"""What the forward and the backward of Ψ share: pooling windows, tiles of pixels, and products with fp32's accuracy.

Operands are split into fp16 hi and lo, x = unit · (hi + lo) with unit a power of two: 22 bits, at the speed of the
16-bit matrix units. W is split once (`projection_weight_kernel`), features and gradients in registers, tile by tile, each
in units of its own largest entry, so that no range of the data can leave fp16's.
"""

import triton
import triton.language as tl

from ..arithmetic import in_turn, low_of
from ..launch import kernel

# Of addresses of which it knows nothing, Triton lays neighbouring threads along the last axis of the tile; up to 3.6 along
# the first.
FIRST_AXIS = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))


@triton.jit
def window_start(i, n, m):
    """First of the n cells that window i of m covers; window_start(m) is n."""
    return (i.to(tl.int64) * n // m).to(tl.int32)


@triton.jit
def window_end(i, n, m):
    """One past the last. The windows (of m) that contain cell x (of n) are window x of n over m cells: the relation is
    symmetric, so the backward calls these two with n and m exchanged."""
    return (((i + 1).to(tl.int64) * n + m - 1) // m).to(tl.int32)


@triton.jit
def next_offset(x, y, z, wide_x, wide_y):
    """The offset after (z, y, x) in scan order. Counting is cheaper than dividing a running number."""
    x += 1
    y += (x == wide_x).to(tl.int32)
    z += (y == wide_y).to(tl.int32)
    return tl.where(x == wide_x, 0, x), tl.where(y == wide_y, 0, y), z


@triton.jit
def unit_of(largest):
    """(unit, 1 / unit): powers of two that bring `largest` into [2¹⁴, 2¹⁵), the top of fp16's range."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 15), 254)
    return ((exponent - 14) << 23).to(tl.float32, bitcast=True), ((268 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def split_in_units(x, axis: tl.constexpr, HAS_LOW: tl.constexpr):
    """(hi, lo, unit) of x in fp16, in units of its largest entry along `axis`. Without HAS_LOW x was 16-bit and hi holds
    it, down to 2⁻³⁸ of the largest entry."""
    x = x.to(tl.float32)
    unit, inverse = unit_of(tl.max(tl.abs(x), axis=axis))
    x = x * tl.expand_dims(inverse, axis)
    hi = x.to(tl.float16)
    lo = hi
    if HAS_LOW:
        lo = low_of(x, hi)
    return hi, lo, unit


@triton.jit
def finite_product(a_hi, a_lo, b_hi, b_lo, B_HAS_LOW: tl.constexpr):
    """a @ b from hi and lo.

    The products with a lo are summed apart: the lo of what is not finite is NaN, or an infinity of the wrong sign, and
    such a sum is left out, so that what remains is what fp32 would give.
    """
    small = tl.dot(a_lo, b_hi)
    if B_HAS_LOW:
        small = tl.dot(a_hi, b_lo, small)
    big = tl.dot(a_hi, b_hi)
    return big + tl.where(tl.abs(small) < float("inf"), small, 0.0)


@triton.jit
def feature_tile(at, first, f_c, C, CC: tl.constexpr, EVEN: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """f [CC, P] from the channel `first` on, zero past C; `at` [P] points at channel 0 of each pixel. The load is turned so
    that neighbouring threads read neighbouring channels, or else neighbouring pixels."""
    c = first + tl.arange(0, CC)
    if CHANNELS_LAST or FIRST_AXIS:
        to = at[:, None] + (c if CHANNELS_LAST else c * f_c)[None, :]
        f = tl.trans(tl.load(to) if EVEN else tl.load(to, mask=(c < C)[None, :], other=0.0))
    else:
        to = at[None, :] + c[:, None] * f_c
        f = tl.load(to) if EVEN else tl.load(to, mask=(c < C)[:, None], other=0.0)
    return f


@triton.jit
def weight_tile(split_ptr, first, chunks, DP: tl.constexpr, CC: tl.constexpr):
    """(hi, lo) of W [DP, CC] from the channel `first` on, zero past D and C, in units that `unit_ptr` holds."""
    at = split_ptr + tl.arange(0, DP)[:, None] * (chunks * CC) + (first + tl.arange(0, CC))[None, :]
    return tl.load(at), tl.load(at + DP * CC * chunks)


@triton.jit
def project(
    weight,
    features,
    DP: tl.constexpr,
    P: tl.constexpr,
    CC: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HAS_LOW: tl.constexpr,
):
    """z = W f [DP, P] in chunks of CC channels on the matrix units. weight: (hi and lo, unit [DP] of the rows of W);
    features: (addresses of the pixels, stride of their channels, C)."""
    split_ptr, unit = weight
    at, f_c, C = features
    z = tl.zeros([DP, P], tl.float32)
    chunks = tl.cdiv(C, CC)
    tl.assume(chunks > 0)  # with an empty loop ptxas would serialise the matrix instructions
    for chunk in range(0, chunks):
        w_hi, w_lo = weight_tile(split_ptr, chunk * CC, chunks, DP, CC)
        f = feature_tile(at, chunk * CC, f_c, C, CC, EVEN, CHANNELS_LAST)
        f_hi, f_lo, f_unit = split_in_units(f, 0, HAS_LOW)
        z = tl.fma(finite_product(w_hi, w_lo, f_hi, f_lo, HAS_LOW), f_unit[None, :], z)  # (Ψ1)
    return z * unit[:, None]


@triton.jit
def narrow_weight(weight_ptr, d, c: tl.constexpr, C: tl.constexpr, D):
    """Column c of W [DP]; past C the first one again, which is not used."""
    return tl.load(weight_ptr + d * C + (c if c < C else 0), mask=d < D, other=0.0)


@triton.jit
def narrow_features(at, f_c, C: tl.constexpr):
    """The up to four channels of the pixels at `at`, [P] each; past C the first one again, which is not used."""
    f0 = tl.load(at).to(tl.float32)
    f1 = tl.load(at + f_c).to(tl.float32) if C > 1 else f0
    f2 = tl.load(at + 2 * f_c).to(tl.float32) if C > 2 else f0
    f3 = tl.load(at + 3 * f_c).to(tl.float32) if C > 3 else f0
    return f0, f1, f2, f3


@triton.jit
def narrow_project(w0, w1, w2, w3, f0, f1, f2, f3, C: tl.constexpr):
    """z = W f [DP, P] for C ≤ 4 by multiply-adds: the matrix units would multiply padding."""
    z = w0[:, None] * f0[None, :]  # (Ψ1)
    if C > 1:
        z = tl.fma(w1[:, None], f1[None, :], z)
    if C > 2:
        z = tl.fma(w2[:, None], f2[None, :], z)
    if C > 3:
        z = tl.fma(w3[:, None], f3[None, :], z)
    return z


@kernel
def projection_weight_kernel(
    given_weight_ptr,
    split_ptr,
    unit_ptr,
    C,
    D,
    DP: tl.constexpr,
    CC: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """W [D, C] -> hi and lo [2, DP, chunks·CC] in fp16, and one unit for each of the DP rows; R rows a program."""
    in_turn(PDL)
    d = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.cdiv(C, CC) * CC
    largest = tl.zeros([R, BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        c = first + tl.arange(0, BLOCK)
        inside = (d < D)[:, None] & (c < C)[None, :]
        largest = tl.maximum(
            largest, tl.abs(tl.load(given_weight_ptr + d[:, None] * C + c[None, :], mask=inside, other=0.0))
        )
    unit, inverse = unit_of(tl.max(largest, axis=1))
    tl.store(unit_ptr + d, unit)
    for first in range(0, columns, BLOCK):
        c = first + tl.arange(0, BLOCK)
        inside = (d < D)[:, None] & (c < C)[None, :]
        w = tl.load(given_weight_ptr + d[:, None] * C + c[None, :], mask=inside, other=0.0) * inverse[:, None]
        hi = w.to(tl.float16)
        to = split_ptr + d[:, None] * columns + c[None, :]
        tl.store(to, hi, mask=(c < columns)[None, :])
        tl.store(to + DP * columns, low_of(w, hi), mask=(c < columns)[None, :])
