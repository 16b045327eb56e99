"""The log-normaliser of every row for the caller, and its gradient on the way back.

A walk keeps row_lse in log2 units, of logits without the row terms that softmax ignores: with ψ = c + ψ̃/κ,

    lse_i = ln 2 · row_lse_i + ψ_i·c.
"""

import triton.language as tl
from torch import Tensor

from ..arithmetic import field_tile, in_turn, raise_to
from ..launch import contiguous_axis, kernel, launch, strides
from .plan import Layout, Walk
from .prepare import PreparedPsi

LN2 = tl.constexpr(0.6931471805599453)


@kernel
def lse_store_kernel(
    # pointers
    row_lse_ptr,
    given_psi_ptr,
    centre_ptr,
    given_lse_ptr,
    # sizes
    N,
    D,
    slices,
    # strides
    psi_b: tl.int64,
    psi_d: tl.int64,
    psi_n: tl.int64,
    lse_b: tl.int64,
    lse_n: tl.int64,
    # constants
    DP: tl.constexpr,
    R: tl.constexpr,
    AXIS: tl.constexpr,
    PDL: tl.constexpr,
):
    """row_lse [B, N] -> lse (B, N), any strides."""
    in_turn(PDL)
    row_blocks = tl.cdiv(N, R)
    program = tl.program_id(0).to(tl.int64)
    image = program // row_blocks
    n = ((program % row_blocks) * R).to(tl.int32) + tl.arange(0, R)
    left_out = tl.zeros([R], tl.float32)
    for part in range(0, slices):
        d = part * DP + tl.arange(0, DP)
        inside = (n < N)[:, None] & (d < D)[None, :]
        psi = field_tile(given_psi_ptr, image, psi_b, d, psi_d, n, psi_n, inside, AXIS)
        centre = tl.load(centre_ptr + image * slices * DP + d)
        left_out += tl.sum(psi * centre[None, :], axis=1)
    lse = LN2 * tl.load(row_lse_ptr + image * N + n, mask=n < N, other=0.0) + left_out
    to = given_lse_ptr + image * lse_b + n * lse_n
    tl.store(to, lse.to(given_lse_ptr.dtype.element_ty), mask=n < N)


def write_lse(row_lse: Tensor, psi: Tensor, prepared: PreparedPsi, walk: Walk, layout: Layout, lse: Tensor) -> None:
    """row_lse [B, N] of one walk into lse (B, N)."""
    R = 32
    launch(
        "lse_store",
        lse_store_kernel,
        layout.batch * -(-layout.nodes // R),
        dict(row_lse_ptr=row_lse, given_psi_ptr=psi, centre_ptr=prepared.centre, given_lse_ptr=lse),
        dict(N=layout.nodes, D=psi.shape[1], slices=walk.slices),
        strides("psi", "bdn", psi) | strides("lse", "bn", lse),
        dict(DP=walk.DP, R=R, AXIS=contiguous_axis(psi)),
        warps=8 if walk.DP > 64 else 4,
    )


@kernel
def lse_reach_kernel(
    given_grad_lse_ptr, reach_ptr, N, lse_b: tl.int64, lse_n: tl.int64, R: tl.constexpr, PDL: tl.constexpr
):
    """max |∂L/∂lse| of every image: (B, N) -> reach [B], zeros before."""
    in_turn(PDL)
    blocks = tl.cdiv(N, R)
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    n = (program % blocks) * R + tl.arange(0, R)
    grad = tl.load(given_grad_lse_ptr + image * lse_b + n * lse_n, mask=n < N, other=0.0).to(tl.float32)
    raise_to(reach_ptr + image, tl.max(tl.abs(grad), axis=0))


def find_reach(grad_lse: Tensor, reach: Tensor) -> None:
    """The largest |grad_lse| (B, N) of every image into reach [B], which holds zeros."""
    B, N = grad_lse.shape
    launch(
        "lse_reach",
        lse_reach_kernel,
        B * -(-N // 1024),
        dict(given_grad_lse_ptr=grad_lse, reach_ptr=reach, N=N),
        strides("lse", "bn", grad_lse) | dict(R=1024),
    )
