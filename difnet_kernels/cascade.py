"""The cascade around single walks: W5, the steps, the recomputed states and the sums of gradients, for every backend that
brings walks. A backend that runs a whole cascade itself does not come here.

Fields are (B, C, N) with any strides and any float dtype; `walked` and `row_lse` are what ops/cascade.py allocates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from difnet_kernels.backends import reference


class WalkForward(Protocol):
    """Walk t (W1-W4): fills next_state (B, K, N), walked (B, N, K) and row_lse (B, N)."""

    def __call__(
        self,
        state: Tensor,
        seed: Tensor,
        psi: Tensor,
        mu: Tensor,
        beta: Tensor,
        t: int,
        next_state: Tensor,
        walked: Tensor,
        row_lse: Tensor,
    ) -> None: ...


class WalkBackward(Protocol):
    """Walk t backwards (B1-B7): fills grad_state (B, N, K), grad_psi (B, D, N), grad_mu[t] and grad_beta[t], and adds to
    grad_seed (B, N, K)."""

    def __call__(
        self,
        grad_next: Tensor,
        state: Tensor,
        seed: Tensor,
        psi: Tensor,
        mu: Tensor,
        beta: Tensor,
        t: int,
        walked: Tensor,
        row_lse: Tensor,
        grad_state: Tensor,
        grad_seed: Tensor,
        grad_psi: Tensor,
        grad_mu: Tensor,
        grad_beta: Tensor,
    ) -> None: ...


def forward(
    walk: WalkForward,
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
    """T walks into states (S, B, K, N): every step when S = T, else the last."""
    last = len(psi) - 1
    current = seed if state is None else state  # (W5)
    for t, (p, w, lse) in enumerate(zip(psi, walked.unbind(), row_lse.unbind(), strict=True)):
        # between walks the state is node-major and of the accumulation dtype, whatever the caller's is
        following = states[-1] if t == last else torch.empty_like(w).mT
        walk(current, seed, p, mu, beta, t, following, w, lse)
        if t < last and states.shape[0] > 1:
            states[t].copy_(following)
        current = following


def backward(
    walk: WalkBackward,
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
    """T walks backwards, from what `forward` left in walked and row_lse. grad_states (S, B, K, N) has the gradient of every
    step when S = T, else of the last; without a state (grad_state None) that of y⁰ is added to grad_seed (W5)."""
    walks, saved = walked.unbind(), row_lse.unbind()
    states = _recomputed(seed if state is None else state, seed, mu, beta, walks)
    grad = grad_states[-1]
    total_seed = torch.zeros_like(walks[0])
    for t in reversed(range(len(psi))):
        before = torch.empty_like(total_seed)
        walk(
            grad,
            states[t],
            seed,
            psi[t],
            mu,
            beta,
            t,
            walks[t],
            saved[t],
            grad_state=before,
            grad_seed=total_seed,
            grad_psi=grad_psi[t],
            grad_mu=grad_mu,
            grad_beta=grad_beta,
        )
        grad = before.mT
        if t > 0 and grad_states.shape[0] > 1:
            grad = grad + grad_states[t - 1]
    if grad_state is None:
        grad_seed.copy_(grad + total_seed.mT)  # (W5): the seed is also the first state
    else:
        grad_state.copy_(grad)
        grad_seed.copy_(total_seed.mT)


def _recomputed(first: Tensor, seed: Tensor, mu: Tensor, beta: Tensor, walked: Sequence[Tensor]) -> list[Tensor]:
    """y⁰ ... yᵀ⁻¹ as (B, K, N): only `walked` is kept of a forward, because W3 and W4 cost next to nothing."""
    states = [first]
    if len(walked) == 1:
        return states
    y, s = (x.mT.to(walked[0].dtype) for x in (first, seed))
    for w, m, b in zip(walked[:-1], mu.unbind()[:-1], beta.unbind()[:-1], strict=True):
        y = reference.step(w, s, y, m, b)
        states.append(y.mT)
    return states
