"""The walk as network parts: features in, diffused scores out. Only here live parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from difnet_kernels.checks import check_count, check_counts, check_field
from difnet_kernels.functional import cascaded_random_walk, psi_projection


class PsiProjection(nn.Module):
    """Ψ (§4; Ψ1): conv 1x1 with bias, batch normalisation, adaptive max pooling to the grid of the seed.

    forward(features (B, in_channels, *S), grid) -> (B, embed_dim, *grid), for one to three spatial axes; fused, as
    `psi_projection`, whose gradients and errors it has. `torch.nn.SyncBatchNorm.convert_sync_batchnorm` gives it the
    statistics of all processes.

    >>> PsiProjection(256, 64)(torch.randn(1, 256, 81, 81), (41, 41)).shape
    torch.Size([1, 64, 41, 41])
    """

    def __init__(self, in_channels: int, embed_dim: int = 64) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("embed_dim", embed_dim)
        self.weight = nn.Parameter(torch.empty(embed_dim, in_channels))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        self.norm = nn.BatchNorm2d(embed_dim)  # of its state alone, whatever the number of axes
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias as torch initialises a 1x1 convolution; `norm` has a method of its own."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, grid: Sequence[int]) -> Tensor:
        return psi_projection(features, self.weight, self.bias, self.norm, grid)

    def extra_repr(self) -> str:
        return f"in_channels={self.weight.shape[1]}, embed_dim={self.weight.shape[0]}"


class ImportanceMap(nn.Module):
    """M = H(x) (§4): one weight in [0, 1] per node from the scores around it; the seed is M x (W5).

    BN-ReLU-conv 5x5, three times, K -> 8 -> 4 -> 1, no convolution bias, sigmoid last.
    forward(scores (B, K, H, W)) -> (B, 1, H, W), differentiable as the layers it is made of.

    >>> scores = torch.randn(1, 21, 41, 41)
    >>> seed = ImportanceMap(21)(scores) * scores
    >>> seed.shape
    torch.Size([1, 21, 41, 41])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        widths = (num_classes, 8, 4, 1)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths[1:], widths, strict=False):
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, narrow, kernel_size=5, padding=2, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(scores))


class CascadedRandomWalk(nn.Module):
    """The cascade as a drop-in module (Eqs. 3-5): T feature maps in, Ψ of each, T gated walks of the seed.

    in_channels: the channels of the T feature maps, in the order of the walks.
    embed_dim: D, the width of every embedding.
    gate: μ = β = gate at the start, for every walk: 0.5 as in DifNet; a small one (0.01, say) starts near the identity,
        so that a walk added to a trained network cannot hurt it at step 0.

    forward(seed (B, K, *S), features: T maps (B, C_t, *S_t)) -> (B, K, *S); with return_steps the tuple (y¹, ..., yᵀ).
        Channels are always the second axis. Where sizes fit both readings (H == C of an NHWC map) nothing can tell, so
        channels-last data must be turned by movedim(-1, 1), and tokens (B, N, C) by x.mT.
    Parameters: Ψ, and one raw value per walk for μ and for β; `mu` and `beta` are the probabilities, sigmoid(-raw), in
    fp32 also under autocast. Gradients, precision and errors as in `cascaded_random_walk` and `psi_projection`.

    >>> walk = CascadedRandomWalk(in_channels=(3, 256))
    >>> scores, image, block = torch.randn(1, 21, 41, 41), torch.randn(1, 3, 321, 321), torch.randn(1, 256, 81, 81)
    >>> walk(scores, [image, block]).shape
    torch.Size([1, 21, 41, 41])
    """

    def __init__(
        self, in_channels: Sequence[int] = (3, 256, 512, 1024, 2048), embed_dim: int = 64, *, gate: float = 0.5
    ) -> None:
        super().__init__()
        check_counts("in_channels", in_channels)
        check_count("embed_dim", embed_dim)
        if isinstance(gate, bool) or not isinstance(gate, (int, float)):
            raise TypeError(
                f"gate must be a probability strictly between 0 and 1; got {gate!r} ({type(gate).__name__})."
            )
        if not 0.0 < gate < 1.0:
            raise ValueError(f"gate must be a probability strictly between 0 and 1; got {gate}.")
        self.gate = gate
        self.psi = nn.ModuleList(PsiProjection(channels, embed_dim) for channels in in_channels)
        self.mu_raw = nn.Parameter(torch.empty(len(in_channels)))
        self.beta_raw = nn.Parameter(torch.empty(len(in_channels)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every gate at `gate`; each Ψ has a method of its own."""
        for raw in (self.mu_raw, self.beta_raw):
            raw.copy_(-torch.logit(torch.full_like(raw, self.gate)))

    @property
    def mu(self) -> Tensor:
        """(T,) how far each walk follows P instead of returning to the seed."""
        return torch.sigmoid(-self.mu_raw.float())

    @property
    def beta(self) -> Tensor:
        """(T,) how much of each walk is kept against the state before it."""
        return torch.sigmoid(-self.beta_raw.float())

    def embeddings(self, features: Sequence[Tensor], grid: Sequence[int]) -> list[Tensor]:
        """The T embeddings ψₜ (B, D, *grid)."""
        if isinstance(features, (Tensor, str, Mapping)) or not isinstance(features, Sequence):
            raise TypeError(
                f"features must be a sequence of {len(self.psi)} maps, one per walk; got {type(features).__name__}. Write [x] "
                "for one map, list(x.values()) for a dict in its order."
            )
        if len(features) != len(self.psi):
            raise ValueError(f"features must be {len(self.psi)} maps, one per walk; got {len(features)}.")
        for t, (project, feature) in enumerate(zip(self.psi, features, strict=True)):
            self._check_map(t, feature, project)
        return [project(feature, grid) for project, feature in zip(self.psi, features, strict=True)]

    def _check_map(self, t: int, feature: Tensor, project: nn.Module) -> None:
        """Under the name that the caller knows; the rest is for psi_projection."""
        if isinstance(feature, torch.fx.Proxy):
            return
        name = f"features[{t}]"
        check_field(name, feature)
        weight = getattr(project, "weight", None)
        if weight is None or weight.dim() != 2:  # flat where it is sharded
            return
        channels = weight.shape[1]
        if feature.shape[1] != channels:
            raise ValueError(
                f"{name} must have {channels} channels on its second axis, as in_channels says; got {tuple(feature.shape)}. "
                "Channels that are the last axis become the second by movedim(-1, 1)."
            )

    def forward(
        self, seed: Tensor, features: Sequence[Tensor], *, return_steps: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        if not isinstance(seed, torch.fx.Proxy):
            check_field("seed", seed)
        psi = self.embeddings(features, seed.shape[2:])
        return cascaded_random_walk(seed, psi, self.mu, self.beta, return_steps=return_steps)
