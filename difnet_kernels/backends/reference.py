"""The dense truth: W1-W6, B1-B7 and Ψ in plain torch, every intermediate stored. The other backends are tested against it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d

from difnet_kernels.problem import Problem, Projection


def unusable() -> str | None:
    return None


def refuses(problem: Problem) -> str | None:
    return None


def refuses_projection(problem: Projection) -> str | None:
    return None


def transition(psi: Tensor) -> tuple[Tensor, Tensor]:
    """(W1) P = softmax of the rows of psi psi^T for node-major psi (B, N, D), and row_lse (B, N)."""
    logits = psi @ psi.mT
    # softmax and not exp(logits - row_lse): beside a logit of 1e6, fp32 rounds the log of the row sum away
    return logits.softmax(-1), logits.logsumexp(-1)


def walk(state: Tensor, seed: Tensor, psi: Tensor, mu: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step on node-major fields (B, N, C): the next state, walked and row_lse. Differentiable by autograd."""
    P, row_lse = transition(psi)
    walked = P @ state  # (W2)
    return epilogue(walked, state, seed, mu, beta), walked, row_lse


def epilogue(walked: Tensor, state: Tensor, seed: Tensor, mu: Tensor, beta: Tensor) -> Tensor:
    """The next state, from what the other nodes sent: fields of one shape, in any layout."""
    mixed = mu * walked + (1 - mu) * seed  # (W3)
    return beta * mixed + (1 - beta) * state  # (W4)


def closed_form(seed: Tensor, psi: Tensor, mu: float | Tensor) -> Tensor:
    """(W6) y = (I - mu P)^-1 (1 - mu) seed, the limit of Eq. 3, on node-major fields; mu < 1."""
    P, _ = transition(psi)
    identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return torch.linalg.solve(identity - mu * P, (1 - mu) * seed)


def walk_backward(
    grad: Tensor, state: Tensor, seed: Tensor, psi: Tensor, mu: Tensor, beta: Tensor, walked: Tensor, row_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """B1-B7 on node-major fields: the gradients of state, seed, psi, mu and beta, with the symmetry Q = K spelled out."""
    h = beta * mu * grad  # (B1) = dL/dwalked
    delta = (h * walked).sum(-1, keepdim=True)  # (B2)
    P = (psi @ psi.mT - row_lse.unsqueeze(-1)).exp()  # (B3)
    half = P * (h @ state.mT - delta)
    T = half + half.mT  # (B4)
    grad_psi = T @ psi  # (B5)
    grad_state = (1 - beta) * grad + P.mT @ h  # (B1, B6)
    grad_seed = beta * (1 - mu) * grad  # (B1)
    mixed = mu * walked + (1 - mu) * seed
    grad_mu = beta * ((walked - seed) * grad).sum()  # (B7)
    grad_beta = ((mixed - state) * grad).sum()  # (B7)
    return grad_state, grad_seed, grad_psi, grad_mu, grad_beta


def _node_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.mT.to(dtype)


def _in_full_precision(run: Callable[..., None]) -> Callable[..., None]:
    """Autocast would round the logits to 16 bits, and logits decide everything."""

    @functools.wraps(run)
    def without_autocast(*args: Any, **results: Any) -> None:
        device = next(x.device for x in results.values() if isinstance(x, Tensor))
        with torch.autocast(device_type=device.type, enabled=False):
            run(*args, **results)

    return without_autocast


@_in_full_precision
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
    dtype = walked.dtype
    s = _node_major(seed, dtype)
    y = s if state is None else _node_major(state, dtype)  # (W5)
    for t, p in enumerate(psi):
        y, walked[t], row_lse[t] = walk(y, s, _node_major(p, dtype), mu[t], beta[t])
        if states.shape[0] == len(psi):
            states[t] = y.mT
    states[-1] = y.mT


@_in_full_precision
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
    dtype, walks = walked.dtype, len(psi)
    s = _node_major(seed, dtype)
    y = [s if state is None else _node_major(state, dtype)]
    for t in range(walks - 1):
        y.append(beta[t] * (mu[t] * walked[t] + (1 - mu[t]) * s) + (1 - beta[t]) * y[t])
    grad = _node_major(grad_states[-1], dtype)
    total_seed = torch.zeros_like(s)
    for t in reversed(range(walks)):
        grad, step_seed, step_psi, grad_mu[t], grad_beta[t] = walk_backward(
            grad, y[t], s, _node_major(psi[t], dtype), mu[t], beta[t], walked[t], row_lse[t]
        )
        total_seed += step_seed
        grad_psi[t].copy_(step_psi.mT)
        if t > 0 and grad_states.shape[0] == walks:
            grad = grad + _node_major(grad_states[t - 1], dtype)
    if grad_state is None:
        total_seed = total_seed + grad  # (W5): the seed is also the first state
    else:
        grad_state.copy_(grad.mT)
    grad_seed.copy_(total_seed.mT)


def _project(features: Tensor, weight: Tensor) -> Tensor:
    """(Ψ1) z = W f at every pixel, (B, D, Z, H, W)."""
    return torch.einsum("dc,bczhw->bdzhw", weight, features.to(weight.dtype))


@_in_full_precision
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
    z = _project(features, weight)
    signed = z
    if slope is not None:
        slope = slope.view(-1, 1, 1, 1)
        signed = torch.where(slope == 0, 0 * z, torch.where(slope < 0, -z, z))
    _, winner = adaptive_max_pool3d(signed, peak.shape[2:], return_indices=True)
    position.copy_(winner)
    peak.copy_(z.flatten(2).gather(2, winner.flatten(2)).view(winner.shape))
    if mean is not None and variance is not None:
        torch.mean(z, (0, 2, 3, 4), out=mean)
        variance.copy_(z.var((0, 2, 3, 4), unbiased=False))


@_in_full_precision
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
    z = _project(features, weight) if z is None else z
    grad = torch.zeros_like(z).flatten(2)
    grad = grad.scatter_add_(2, position.flatten(2).long(), grad_peak.flatten(2).to(z.dtype)).view(z.shape)  # (Ψ2)
    pixels = z.numel() // z.shape[1]
    if grad_mean is not None:
        grad = grad + grad_mean.view(-1, 1, 1, 1) / pixels
    if grad_variance is not None and mean is not None:
        grad = grad + 2 * (z - mean.view(-1, 1, 1, 1)) * grad_variance.view(-1, 1, 1, 1) / pixels
    if grad_features is not None:
        grad_features.copy_(torch.einsum("dc,bdzhw->bczhw", weight, grad))  # (Ψ3)
    if grad_weight is not None:
        grad_weight.copy_(torch.einsum("bdzhw,bczhw->dc", grad, features.to(z.dtype)))  # (Ψ4)
