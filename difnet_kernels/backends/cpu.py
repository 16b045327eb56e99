"""C++ kernels for the CPU (csrc/cpu): the calls of the library's walks and of its Ψ."""

from __future__ import annotations

import torch
from torch import Tensor

from difnet_kernels.backends.native import instruction_set, unusable
from difnet_kernels.problem import Problem, Projection

__all__ = ["instruction_set", "unusable"]


def refuses(problem: Problem | Projection) -> str | None:
    return None if problem.device.type == "cpu" else f"it runs on the CPU; the tensors are on {problem.device}"


def walk_forward(
    state: Tensor,
    seed: Tensor,
    psi: Tensor,
    bias: Tensor | None,
    mu: Tensor,
    beta: Tensor,
    t: int,
    next_state: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
) -> None:
    fields, results, high = (state, seed, psi, bias), (next_state, walked, row_lse), precision == "high"
    torch.ops.difnet_kernels.walk_forward.default(*fields, mu, beta, t, *results, high)


def walk_backward(
    grad_next: Tensor,
    grad_row_lse: Tensor | None,
    state: Tensor,
    seed: Tensor,
    psi: Tensor,
    bias: Tensor | None,
    mu: Tensor,
    beta: Tensor,
    t: int,
    walked: Tensor,
    row_lse: Tensor,
    grad_state: Tensor,
    grad_seed: Tensor,
    grad_psi: Tensor | None,
    grad_bias: Tensor | None,
    grad_mu: Tensor,
    grad_beta: Tensor,
    precision: str,
) -> None:
    fields, saved = (grad_next, grad_row_lse, state, seed, psi, bias), (walked, row_lse)
    grads = (grad_state, grad_seed, grad_psi, grad_bias, grad_mu, grad_beta)
    torch.ops.difnet_kernels.walk_backward.default(*fields, mu, beta, t, *saved, *grads, precision == "high")


def projection_forward(
    features: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    *,
    peak: Tensor,
    position: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
) -> None:
    torch.ops.difnet_kernels.project_pool_forward.default(features, weight, slope, peak, position, mean, variance)


def projection_backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    mean: Tensor | None,
    *,
    z: Tensor | None = None,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    upstream = (_node_major(grad_peak.to(weight.dtype)), grad_mean, grad_variance)
    saved = (_node_major(position), None if z is None else _node_major(z), mean)
    torch.ops.difnet_kernels.project_pool_backward.default(
        *upstream, features, weight, *saved, grad_features, grad_weight
    )


def _node_major(pooled: Tensor) -> Tensor:
    return pooled.movedim(1, -1).contiguous()
