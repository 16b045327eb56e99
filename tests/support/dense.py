"""The truth of a walk with a bias, a mask and its lse: dense, in fp64, differentiated by autograd. It shares no code with the
package, and knows a mask only as a crop: the nodes that exist are taken out, walk alone, and are put back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Maybe = Sequence[Tensor | None]


def dense(
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    bias: Maybe = (),
    mask: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The states (B, K, *S) and the lse (B, *S) of every walk, on fields of fp64; bias (B, *S) or (1, *S)."""
    grid, walks = seed.shape[2:], len(psi)
    first = seed if state is None else state
    states, lse = [[] for _ in psi], [[] for _ in psi]
    for image in range(seed.shape[0]):
        there = torch.ones(seed[0, 0].numel(), dtype=torch.bool) if mask is None else mask[image].flatten()
        keep = there.nonzero()[:, 0].to(seed.device)
        s, y = (x[image].flatten(1)[:, keep] for x in (seed, first))
        for t in range(walks):
            p = psi[t][image].flatten(1)[:, keep]
            logits = p.mT @ p
            b = bias[t] if bias else None
            if b is not None:
                logits = logits + b[image if b.shape[0] > 1 else 0].flatten()[keep]
            walked = y @ logits.softmax(-1).mT
            y = beta[t] * (mu[t] * walked + (1 - mu[t]) * s) + (1 - beta[t]) * y
            states[t].append(first[image].flatten(1).index_copy(1, keep, y).view(-1, *grid))
            none = logits.new_full(there.shape, -torch.inf)
            lse[t].append(none.index_copy(0, keep, logits.logsumexp(-1)).view(grid))
    return [torch.stack(x) for x in states], [torch.stack(x) for x in lse]
