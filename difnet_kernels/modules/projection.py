"""Ψ as a module, with the normalisations that a network may need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from difnet_kernels.checks import check_count
from difnet_kernels.functional import psi_projection


class LayerNorm(nn.LayerNorm):
    """Over the channels of every node, (B, D, *S)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, fewer where those do not divide the channels, of at least two channels where there are two."""
    groups = math.gcd(32, channels)
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,  # of its state alone, whatever the number of axes
    "group": group_norm,
    "layer": LayerNorm,
}


class PsiProjection(nn.Module):
    """Ψ (§4; Ψ1): conv 1x1 with bias, normalisation, adaptive max pooling to the grid of the seed.

    norm: "batch", fused into one pass over the features as `psi_projection` does it; "group" (of 32 groups at most), "layer"
        (over the channels of every node), None, or a function from the number of channels to a module. A batch of one image,
        or a network whose batch normalisations are frozen, needs another one than "batch". All others but None are
        called on the projected map, which is then stored at the resolution of the features.

    forward(features (B, in_channels, *S), grid) -> (B, embed_dim, *grid), for one to three spatial axes; gradients and
    errors as in `psi_projection`. `torch.nn.SyncBatchNorm.convert_sync_batchnorm` gives it the statistics of all processes.

    >>> PsiProjection(256, 64)(torch.randn(1, 256, 81, 81), (41, 41)).shape
    torch.Size([1, 64, 41, 41])
    """

    norm: nn.Module | None

    def __init__(
        self, in_channels: int, embed_dim: int = 64, *, norm: str | Callable[[int], nn.Module] | None = "batch"
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("embed_dim", embed_dim)
        self.weight = nn.Parameter(torch.empty(embed_dim, in_channels))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        self.norm = make_norm(norm, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias as torch initialises a 1x1 convolution; `norm` has a method of its own."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, grid: Sequence[int], *, backend: str | None = None) -> Tensor:
        return psi_projection(features, self.weight, self.bias, self.norm, grid, backend=backend)

    def extra_repr(self) -> str:
        return f"in_channels={self.weight.shape[1]}, embed_dim={self.weight.shape[0]}"


def make_norm(norm: str | Callable[[int], nn.Module] | None, channels: int) -> nn.Module | None:
    """The module that `norm` stands for."""
    if norm is None:
        return None
    make = NORMS.get(norm) if isinstance(norm, str) else norm
    if isinstance(norm, nn.Module) or not callable(make):
        raise ValueError(
            f"norm must be one of {', '.join(map(repr, NORMS))}, None, or a function from the number of channels to a module; "
            f"got {norm if isinstance(norm, (str, int)) else type(norm).__name__!r}. For a module of yours write "
            "norm=lambda channels: YourNorm(channels): every walk needs its own."
        )
    made = make(channels)
    if not isinstance(made, nn.Module):
        raise TypeError(f"norm must make a module; got {type(made).__name__} for {channels} channels.")
    return made
