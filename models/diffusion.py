"""How seeds spread: the paper's cascade, and two counterparts: its dense formulation, and its closed form.

All share one interface: `embeddings(features, grid)` measures similarity, `diffuse(seed, psi)` spreads the seed.
"""

from collections.abc import Sequence

import torch
from torch import nn

from difnet_kernels import CascadedRandomWalk, PsiProjection, cascaded_random_walk


class Cascade(CascadedRandomWalk):
    """The library's cascade (Eqs. 3-5), with its two halves callable one by one."""

    def diffuse(
        self, seed: torch.Tensor, psi: Sequence[torch.Tensor], return_steps: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """yᵀ (B, K, H', W'), or (y¹, …, yᵀ), from T embeddings (B, D, H', W')."""
        return cascaded_random_walk(seed, psi, self.mu, self.beta, return_steps=return_steps)


class DenseCascade(Cascade):
    """The same cascade in plain torch, with N×N matrices: what it costs without kernels made for it."""

    def diffuse(
        self, seed: torch.Tensor, psi: Sequence[torch.Tensor], return_steps: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        steps = dense_steps(seed, psi, self.mu, self.beta)
        return steps if return_steps else steps[-1]


def dense_steps(
    seed: torch.Tensor, psi: Sequence[torch.Tensor], mu: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """y¹ … yᵀ like `seed` (B, K, *S), one N×N transition matrix at a time (several where a backward needs them)."""
    source = seed.flatten(2).mT  # [B, N, K]
    state, steps = source, []
    for p, m, b in zip(psi, mu, beta, strict=True):
        nodes = p.flatten(2).mT  # [B, N, D]
        walked = torch.softmax(nodes @ nodes.mT, -1) @ state
        state = b * (m * walked + (1 - m) * source) + (1 - b) * state
        steps.append(state.mT.reshape(seed.shape))
    return tuple(steps)


class ClosedForm(nn.Module):
    """y = (I - μP)⁻¹ (1 - μ) s (Eq. 2, W6), with P from the deepest of the features alone, solved densely.

    Stores N×N numbers and takes O(N³) time: for small images only. β is 1: there is no earlier state to keep.
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

    def diffuse(
        self, seed: torch.Tensor, psi: Sequence[torch.Tensor], return_steps: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor]:
        with torch.autocast(seed.device.type, enabled=False):  # there is no 16-bit solver
            nodes = psi[0].flatten(2).float()  # [B, D, N]
            transition = torch.softmax(nodes.transpose(1, 2) @ nodes, dim=-1)  # [B, N, N]
            system = torch.eye(nodes.shape[2], device=nodes.device) - self.mu * transition
            target = (1 - self.mu) * seed.flatten(2).transpose(1, 2).float()  # [B, N, K]
            solution = torch.linalg.solve(system, target).transpose(1, 2)
        state = solution.reshape(seed.shape).to(seed.dtype)
        return (state,) if return_steps else state
