"""C++ kernels for the CPU (csrc/cpu): this file strings the library's walks into a cascade, and calls Ψ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from difnet_kernels.backends.native import instruction_set, unusable
from difnet_kernels.problem import Problem, Projection

__all__ = ["instruction_set", "unusable"]


def refuses(problem: Problem | Projection) -> str | None:
    return None if problem.device.type == "cpu" else f"it runs on the CPU; the tensors are on {problem.device}"


refuses_projection = refuses


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Tensor,
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    last, steps = len(psi) - 1, states.shape[0]
    current = seed if state is None else state  # (W5)
    for t, p in enumerate(psi):
        out = states[t - last - 1] if steps > last or t == last else None
        # between walks the state keeps the accumulation dtype, whatever the caller's is
        direct = out is not None and (t == last or out.dtype == walked.dtype)
        following = out if out is not None and direct else torch.empty_like(walked[t]).mT
        torch.ops.difnet_kernels.walk_forward.default(current, seed, p, mu, beta, t, following, walked[t], row_lse[t])
        if out is not None and not direct:
            out.copy_(following)
        current = following


def cascade_backward(
    grad_states: Tensor,
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    *,
    grad_state: Tensor | None,
    grad_seed: Tensor,
    grad_psi: Sequence[Tensor],
    grad_mu: Tensor,
    grad_beta: Tensor,
) -> None:
    walks, exact = len(psi), walked.dtype
    y = [seed if state is None else state]
    for t in range(walks - 1):
        mixed = torch.lerp(seed.mT.to(exact), walked[t], mu[t])  # (W3)
        y.append(torch.lerp(y[t].to(exact), mixed.mT, beta[t]))  # (W4)
    grad = grad_states[-1]
    total_seed = torch.zeros_like(walked[0])
    for t in reversed(range(walks)):
        before = torch.empty_like(total_seed)
        torch.ops.difnet_kernels.walk_backward.default(
            grad, y[t], seed, psi[t], mu, beta, t, walked[t], row_lse[t],
            before, total_seed, grad_psi[t], grad_mu, grad_beta,
        )  # fmt: skip
        grad = before.mT
        if t > 0 and grad_states.shape[0] == walks:
            grad = grad + grad_states[t - 1]
    if grad_state is None:
        grad = grad + total_seed.mT  # (W5): the seed is also the first state
    else:
        grad_state.copy_(grad)
        grad = total_seed.mT
    grad_seed.copy_(grad)


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
    torch.ops.difnet_kernels.project_pool_backward.default(
        _node_major(grad_peak.to(weight.dtype)), grad_mean, grad_variance, features, weight, _node_major(position),
        None if z is None else _node_major(z), mean, grad_features, grad_weight,
    )  # fmt: skip


def _node_major(pooled: Tensor) -> Tensor:
    return pooled.movedim(1, -1).contiguous()
