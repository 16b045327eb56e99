"""The dense truth: W1-W6, B1-B8 and Ψ in plain torch, every intermediate stored. The other backends are tested against it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d

from difnet_kernels.problem import Problem, Projection


def unusable() -> str | None:
    return None


def refuses(problem: Problem | Projection) -> str | None:
    return None


def logits_of(psi: Tensor, bias: Tensor | None) -> Tensor:
    """(W1, W1b) psi psi^T for node-major psi (B, N, D), plus bias (B, N) of its column."""
    logits = psi @ psi.mT
    return logits if bias is None else logits + bias.unsqueeze(-2)


def transition(psi: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(W1) P = softmax of the rows of the logits, and row_lse (B, N)."""
    logits = logits_of(psi, bias)
    # softmax and not exp(logits - row_lse): beside a logit of 1e6, fp32 rounds the log of the row sum away
    return logits.softmax(-1), logits.logsumexp(-1)


def walk(
    state: Tensor, seed: Tensor, psi: Tensor, mu: Tensor, beta: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step on node-major fields (B, N, C): the next state, walked and row_lse. Differentiable by autograd."""
    P, row_lse = transition(psi, bias)
    walked = P @ state  # (W2)
    return step(walked, seed, state, mu, beta), walked, row_lse


def step(walked: Tensor, seed: Tensor, state: Tensor, mu: Tensor, beta: Tensor) -> Tensor:
    """The next state from what has walked; the gates broadcast."""
    return beta * mix(walked, seed, mu) + (1 - beta) * state  # (W4)


def mix(walked: Tensor, seed: Tensor, mu: Tensor) -> Tensor:
    return mu * walked + (1 - mu) * seed  # (W3)


def closed_form(seed: Tensor, psi: Tensor, mu: float | Tensor) -> Tensor:
    """(W6) y = (I - mu P)^-1 (1 - mu) seed, the limit of Eq. 3, on node-major fields; mu < 1."""
    P, _ = transition(psi)
    identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return torch.linalg.solve(identity - mu * P, (1 - mu) * seed)  # (W6)


def walk_gradients(
    grad: Tensor,
    state: Tensor,
    seed: Tensor,
    psi: Tensor,
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    bias: Tensor | None = None,
    grad_row_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """B1-B8 on node-major fields: the gradients of state, seed, psi, bias, mu and beta, with the symmetry Q = K spelled
    out."""
    h = beta * mu * grad  # (B1) = dL/dwalked
    delta = (h * walked).sum(-1)  # (B2)
    g = torch.zeros_like(row_lse) if grad_row_lse is None else grad_row_lse
    P = (logits_of(psi, bias) - row_lse.unsqueeze(-1)).exp()  # (B3)
    A = P * (h @ state.mT - (delta - g).unsqueeze(-1))  # (B4b) = dL/dS
    # a row of A sums to g: so its diagonal, a difference that cancels where P is one-hot, follows from the rest of the row
    A.diagonal(dim1=-2, dim2=-1).zero_().copy_(g - A.sum(-1))
    T = A + A.mT  # (B4, B4b)
    grad_psi = T @ psi  # (B5)
    grad_bias = T.sum(-1) - g  # (B8)
    grad_state = (1 - beta) * grad + P.mT @ h  # (B1, B6)
    grad_seed = beta * (1 - mu) * grad  # (B1)
    grad_mu = beta * ((walked - seed) * grad).sum()  # (B7)
    grad_beta = ((mix(walked, seed, mu) - state) * grad).sum()  # (B7)
    return grad_state, grad_seed, grad_psi, grad_bias, grad_mu, grad_beta


def _node_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.mT.to(dtype)


def _in_full_precision(run: Callable[..., None]) -> Callable[..., None]:
    """Autocast would round the logits to 16 bits, and logits decide everything."""

    @functools.wraps(run)
    def without_autocast(*args: Any, **results: Any) -> None:
        device = next(x.device for x in (*args, *results.values()) if isinstance(x, Tensor))
        with torch.autocast(device_type=device.type, enabled=False):
            run(*args, **results)

    return without_autocast


@_in_full_precision
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
    precision: str = "high",
) -> None:
    """`walk` for cascade.py: fields (B, C, N) of any dtype, results into memory that is given; always of high precision."""
    y, s, p = (_node_major(x, walked.dtype) for x in (state, seed, psi))
    y, w, lse = walk(y, s, p, mu[t], beta[t], bias)
    next_state.copy_(y.mT)
    walked.copy_(w)
    row_lse.copy_(lse)


@_in_full_precision
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
    precision: str = "high",
) -> None:
    """`walk_gradients` for cascade.py; adds to grad_seed."""
    grad, y, s, p = (_node_major(x, walked.dtype) for x in (grad_next, state, seed, psi))
    of_state, of_seed, of_psi, of_bias, grad_mu[t], grad_beta[t] = walk_gradients(
        grad, y, s, p, mu[t], beta[t], walked, row_lse, bias, grad_row_lse
    )
    grad_state.copy_(of_state)
    grad_seed += of_seed
    if grad_psi is not None:
        grad_psi.copy_(of_psi.mT)
    if grad_bias is not None:
        grad_bias.copy_(of_bias)


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
