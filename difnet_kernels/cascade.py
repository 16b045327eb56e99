"""The cascade around single walks: W5, the steps, the recomputed states and the sums of gradients, for every backend that
brings walks; and what a backend needs that runs a whole cascade itself.

Fields are (B, C, N) with any strides and any float dtype; `walked` and `row_lse` are what ops/cascade.py allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Protocol

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
    """Walk t backwards (B1-B7): fills grad_state (B, N, K), grad_psi (B, D, N) unless it is None, grad_mu[t] and
    grad_beta[t], and adds to grad_seed (B, N, K)."""

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
        grad_psi: Tensor | None,
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
    states: Sequence[Tensor],
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    """T walks into the states (B, K, N): every step if there are T of them, else the last. Where no backward will come,
    `walked` and `row_lse` hold one walk, and each overwrites what the one before it left."""
    last = len(psi) - 1
    current = seed if state is None else state  # (W5)
    for t, (p, w, lse) in enumerate(zip(psi, cycle(walked.unbind()), cycle(row_lse.unbind()), strict=False)):
        # between walks the state is node-major and of the accumulation dtype, whatever the caller's is
        following = states[-1] if t == last else torch.empty_like(w).mT
        walk(current, seed, p, mu, beta, t, following, w, lse)
        if t < last and len(states) > 1:
            states[t].copy_(following)
        current = following


def backward(
    walk: WalkBackward,
    grad_states: Sequence[Tensor],
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
    grad_seed: Tensor | None,
    grad_psi: Sequence[Tensor | None],
    grad_mu: Tensor | None,
    grad_beta: Tensor | None,
) -> None:
    """T walks backwards, from what `forward` left in walked and row_lse. grad_states has the gradient of every state that
    forward filled; a gradient that is None is not wanted. Without a state that of y⁰ is added to grad_seed (W5)."""
    walks, saved = walked.unbind(), row_lse.unbind()
    states = _recomputed(seed if state is None else state, seed, mu, beta, walks)
    to_the_start = not (grad_state is grad_seed is grad_mu is grad_beta is None)
    earliest = 0 if to_the_start else next(t for t, p in enumerate(grad_psi) if p is not None)
    of_mu = torch.empty_like(mu) if grad_mu is None else grad_mu
    of_beta = torch.empty_like(beta) if grad_beta is None else grad_beta
    grad = grad_states[-1]
    total_seed = torch.zeros_like(walks[0])
    for t in reversed(range(earliest, len(psi))):
        before = torch.empty_like(total_seed)
        fields = (grad, states[t], seed, psi[t])
        walk(*fields, mu, beta, t, walks[t], saved[t], before, total_seed, grad_psi[t], of_mu, of_beta)
        grad = before.mT
        if t > 0 and len(grad_states) > 1:
            grad = grad + grad_states[t - 1]
    if grad_state is not None:
        grad_state.copy_(grad)
    if grad_seed is not None:
        # (W5): without a state the seed is also the first state
        grad_seed.copy_(total_seed.mT if state is not None else grad + total_seed.mT)


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


def whole_forward(
    run: Callable[..., None],
    *fields_and_gates: Any,
    states: Sequence[Tensor],
    walked: Tensor,
    row_lse: Tensor,
) -> None:
    """For a backend that runs the cascade itself, into states (S, B, K, N) and into memory for every walk."""
    _, seed, psi, *_ = fields_and_gates
    if walked.shape[0] < len(psi):
        walked, row_lse = (x.new_empty((len(psi), *x.shape[1:])) for x in (walked, row_lse))
    if len(states) == 1:
        run(*fields_and_gates, states=states[0].unsqueeze(0), walked=walked, row_lse=row_lse)
        return
    together = states[0].new_empty((len(states), *seed.shape))
    run(*fields_and_gates, states=together, walked=walked, row_lse=row_lse)
    for state, filled in zip(states, together.unbind(), strict=True):
        state.copy_(filled)


def whole_backward(
    run: Callable[..., None],
    grad_states: Sequence[Tensor],
    *fields_and_gates: Any,
    grad_state: Tensor | None,
    grad_seed: Tensor | None,
    grad_psi: Sequence[Tensor | None],
    grad_mu: Tensor | None,
    grad_beta: Tensor | None,
) -> None:
    """For a backend that runs the cascade itself, from grad_states (S, B, K, N) and into memory for what nobody wants."""
    state, seed, psi, mu, beta, *_ = fields_and_gates
    run(
        grad_states[0].unsqueeze(0) if len(grad_states) == 1 else torch.stack(list(grad_states)),
        *fields_and_gates,
        grad_state=torch.empty_like(state) if grad_state is None and state is not None else grad_state,
        grad_seed=torch.empty_like(seed) if grad_seed is None else grad_seed,
        grad_psi=[torch.empty_like(p) if grad is None else grad for p, grad in zip(psi, grad_psi, strict=True)],
        grad_mu=torch.empty_like(mu) if grad_mu is None else grad_mu,
        grad_beta=torch.empty_like(beta) if grad_beta is None else grad_beta,
    )
