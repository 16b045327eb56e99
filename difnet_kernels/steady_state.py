"""Where a walk leads when it is repeated: Eq. 2 to a tolerance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from difnet_kernels import backends
from difnet_kernels import ops as _ops  # noqa: F401  registers torch.ops.difnet_kernels
from difnet_kernels.checks import (
    check_bias,
    check_field,
    check_gate,
    check_mask,
    check_on_grid,
    check_precision,
    check_solver,
    check_store,
)
from difnet_kernels.mask import cleared, hidden, restored
from difnet_kernels.problem import accumulation_dtype


def diffuse(
    seed: Tensor,
    psi: Tensor,
    mu: Tensor | float,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    tol: float = 1e-4,
    max_walks: int | None = None,
    store: int = 0,
    precision: str = "high",
    backend: str | None = None,
) -> Tensor:
    """The steady state of a walk (Eq. 2; W6): y = (I - μP)⁻¹ (1 - μ) seed, P = softmax_rows(ψ ψᵀ + b).

    seed: (B, K, *S) class scores in any unit; psi: (B, D, *S); mu: a float in [0, 1) or a 0-d tensor, whose value the host
          reads.
    bias, mask: as in `cascaded_random_walk`; a masked node returns its seed.
    tol: the error of every class is at most tol times its largest |seed| in the image; that of ∂L/∂seed, summed over the
          nodes, at most tol times the sum of |∂L/∂y|.
    max_walks: None allows as many as plain walks need for tol, whatever P is; a number is a limit.
    store: bytes that P (B, N, N) may take where that is faster than to make it again in every walk; 0 never stores it.
    Returns y with the shape, dtype and memory format of `seed`. Every image stops by itself and, where P is not
    stored, has the bits that it has alone (torch may round the products of a stored P otherwise in a batch). The states are
    fp32, or fp64 once a field is fp64. Chebyshev steps where they converge faster, else plain walks.
    Differentiable once, in reverse mode, in seed, psi, mu and bias, by the implicit function: memory O(B·N·(K + D)), however
    many walks.
    Raises TypeError or ValueError for inputs that do not fit, RuntimeError with the residual that was reached if max_walks
    are not enough, BackendUnavailable as `cascaded_random_walk`.

    >>> scribbles, psi = torch.zeros(1, 2, 24, 24), torch.randn(1, 8, 24, 24)
    >>> scribbles[0, 0, 3, 4] = scribbles[0, 1, 20, 19] = 1.0
    >>> diffuse(scribbles, psi, mu=0.9).shape
    torch.Size([1, 2, 24, 24])
    """
    inputs = (seed, psi, mu, bias, mask)
    if has_torch_function(inputs):
        options: dict[str, Any] = {"bias": bias, "mask": mask, "tol": tol, "max_walks": max_walks, "store": store}
        options |= {"precision": precision, "backend": backend}
        return handle_torch_function(diffuse, inputs, seed, psi, mu, **options)
    check_field("seed", seed)
    check_on_grid("psi", psi, seed)
    if bias is not None:
        check_bias("bias", bias, seed)
    accumulate = accumulation_dtype(seed, (psi, bias))
    gate = check_gate("mu", mu, seed, accumulate)
    check_solver(None if isinstance(mu, Tensor) else float(mu), tol, max_walks)
    check_store(store)
    check_precision(precision)
    backends.check_name(backend)
    shape = (seed.shape[0], *seed.shape[2:])
    given = [] if bias is None else [bias.to(accumulate).expand(shape).contiguous()]
    source = seed
    if mask is not None:
        check_mask(mask, seed)
        source, psi = cleared(seed, mask), cleared(psi, mask)
        given = hidden([bias], mask, accumulate)
    y = torch.ops.difnet_kernels.steady_state_forward.default(
        source, psi, gate, given, mask, tol, max_walks, store, precision, backend or ""
    )
    return y if mask is None else restored(y, seed, mask)
