"""The cascade around single walks: W5, the steps, the recomputed states and the sums of gradients, for every backend that
brings walks. A backend that runs a whole cascade itself does not come here.

Fields are (B, C, N) with any strides and any float dtype; `walked` and `row_lse` are what ops/cascade.py allocates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from difnet_kernels.backends import reference


class WalkForward(Protocol):
    """Walk t (W1-W4): fills next_state (B, K, N), walked (B, N, K) and row_lse (B, N), in natural units.

    bias: (B, N), contiguous and of the accumulation dtype, or None. It may hold -inf: that column has no weight, and a
    row of such columns alone is NaN, with a row_lse of -inf (W1b)."""

    def __call__(
        self,
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
    ) -> None: ...


class WalkBackward(Protocol):
    """Walk t backwards (B1-B8): fills grad_state (B, N, K), grad_psi (B, D, N) and grad_bias (B, N) unless they are None,
    grad_mu[t] and grad_beta[t], and adds to grad_seed (B, N, K).

    grad_row_lse: (B, N), contiguous and of the accumulation dtype, or None where row_lse has no gradient. grad_bias is
    asked for only where there is a bias."""

    def __call__(
        self,
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
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
) -> None:
    """T walks into the states (B, K, N): every step if there are T of them, else the last; bias and lse (B, N) of every walk,
    or none. Where no backward will come, `walked` and `row_lse` hold one walk, and each overwrites what the one before it
    left."""
    last = len(psi) - 1
    bias = bias or [None] * len(psi)
    current = seed if state is None else state  # (W5)
    for t, (p, w, r) in enumerate(zip(psi, cycle(walked.unbind()), cycle(row_lse.unbind()), strict=False)):
        # between walks the state is node-major and of the accumulation dtype, whatever the caller's is
        following = states[-1] if t == last else torch.empty_like(w).mT
        walk(current, seed, p, bias[t], mu, beta, t, following, w, r, precision)
        if lse:
            lse[t].copy_(r)
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
    bias: Sequence[Tensor | None] = (),
    grad_lse: Sequence[Tensor | None] = (),
    grad_bias: Sequence[Tensor | None] = (),
) -> None:
    """T walks backwards, from what `forward` left in walked and row_lse. grad_states has the gradient of every state that
    forward filled, grad_lse of every lse; a gradient that is None is not wanted. Without a state that of y⁰ is added to
    grad_seed (W5)."""
    walks, saved = walked.unbind(), row_lse.unbind()
    states = _recomputed(seed if state is None else state, seed, mu, beta, walks)
    to_the_start = not (grad_state is grad_seed is grad_mu is grad_beta is None)
    bias, grad_lse, grad_bias = (x or [None] * len(psi) for x in (bias, grad_lse, grad_bias))
    learnt = zip(grad_psi, grad_bias, strict=True)
    earliest = 0 if to_the_start else next(t for t, (p, b) in enumerate(learnt) if p is not None or b is not None)
    of_mu = torch.empty_like(mu) if grad_mu is None else grad_mu
    of_beta = torch.empty_like(beta) if grad_beta is None else grad_beta
    grad = grad_states[-1]
    total_seed = torch.zeros_like(walks[0])
    for t in reversed(range(earliest, len(psi))):
        before = torch.empty_like(total_seed)
        fields = (grad, grad_lse[t], states[t], seed, psi[t], bias[t])
        grads = (before, total_seed, grad_psi[t], grad_bias[t], of_mu, of_beta)
        walk(*fields, mu, beta, t, walks[t], saved[t], *grads, precision)
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
