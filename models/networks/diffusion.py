"""How seeds spread: the paper's cascade, and two counterparts: its dense formulation, and its closed form.

All share one interface: `embeddings(features, grid)` measures similarity, `diffuse(seed, psi)` spreads the seed, and
`steps(seed, psi)` shows how.
"""

from collections.abc import Sequence

import torch
from torch import nn

from difnet_kernels import CascadedRandomWalk, PsiProjection, cascaded_random_walk, diffuse
from difnet_kernels.backends import reference


class Cascade(CascadedRandomWalk):
    """The library's cascade (Eqs. 3-5), with its two halves callable one by one."""

    def diffuse(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> torch.Tensor:
        """yᵀ (B, K, H', W') from T embeddings (B, D, H', W')."""
        state = cascaded_random_walk(seed, psi, self.mu, self.beta)
        assert isinstance(state, torch.Tensor)  # not asked for all steps
        return self._apart(seed, state)

    def steps(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(y¹, …, yᵀ)."""
        states = cascaded_random_walk(seed, psi, self.mu, self.beta, return_steps=True)
        assert isinstance(states, tuple)
        return tuple(self._apart(seed, state) for state in states)

    def _apart(self, seed: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """In residual form s + γ (y - s)."""
        return state if self.gamma is None else seed + self.gamma.to(seed.dtype) * (state - seed)


class DenseCascade(Cascade):
    """The same cascade in plain torch, with N×N matrices: what it costs without kernels made for it."""

    def diffuse(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.steps(seed, psi)[-1]

    def steps(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return dense_steps(seed, psi, self.mu, self.beta)


def dense_steps(
    seed: torch.Tensor, psi: Sequence[torch.Tensor], mu: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """y¹ … yᵀ like `seed` (B, K, *S), one N×N transition matrix at a time (several where a backward needs them)."""
    source = seed.flatten(2).mT  # [B, N, K]
    state, steps = source, []
    for p, m, b in zip(psi, mu, beta, strict=True):
        nodes = p.flatten(2).mT  # [B, N, D]
        walked = torch.softmax(nodes @ nodes.mT, -1) @ state
        state = reference.step(walked, source, state, m, b)
        steps.append(state.mT.reshape(seed.shape))
    return tuple(steps)


class ClosedForm(nn.Module):
    """y = (I - μP)⁻¹ (1 - μ) s (Eq. 2, W6), with P from the deepest of the features alone, by walks to a tolerance.

    β is 1: there is no earlier state to keep.
    """

    def __init__(self, in_channels: Sequence[int], embed_dim: int = 64) -> None:
        super().__init__()
        self.psi = nn.ModuleList([PsiProjection(in_channels[-1], embed_dim)])
        self.mu_raw = nn.Parameter(torch.zeros(1))

    @property
    def mu(self) -> torch.Tensor:
        return torch.sigmoid(-self.mu_raw.float())

    @property
    def beta(self) -> torch.Tensor:
        return torch.ones_like(self.mu_raw)

    def embeddings(self, features: Sequence[torch.Tensor], grid: Sequence[int]) -> list[torch.Tensor]:
        return [self.psi[0](features[-1], grid)]

    def diffuse(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> torch.Tensor:
        return diffuse(seed, psi[0], self.mu)

    def steps(self, seed: torch.Tensor, psi: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (self.diffuse(seed, psi),)
