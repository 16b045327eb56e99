"""The cascade as a module: feature maps to embeddings, embeddings to walks of the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from difnet_kernels import backends
from difnet_kernels.checks import check_count, check_counts, check_field, check_precision
from difnet_kernels.functional import cascaded_random_walk
from difnet_kernels.modules import projected
from difnet_kernels.modules.features import Features, read_features
from difnet_kernels.modules.projection import PsiProjection
from difnet_kernels.problem import accumulation_dtype

AFFINITIES = ("dot", "gaussian", "cosine")


class CascadedRandomWalk(nn.Module):
    """The cascade as a drop-in module (Eqs. 3-5): T feature maps in, Ψ of each, T gated walks of the seed.

    The defaults are the paper's walk. In a network that exists, use what `DiffusedHead` uses: residual=True, scale="sqrt".

    in_channels: the channels of the T feature maps, in the order of the walks.
    embed_dim: D, the width of every embedding.
    gate: μ = β = gate at the start, for every walk. A small one is no way to start gently: it shrinks the gradients of
        everything behind it, so that the walk never learns. residual=True starts at the identity and learns.
    scale: the logits are scale·ψψᵀ: a positive float, or "sqrt" for 1/√D. Normalised ψ have norms² of about D, and with 1 (the
        paper) every node looks almost only at itself at the start.
    affinity: "dot" (the paper); "gaussian", P_ij ∝ exp(-scale·‖ψ_i - ψ_j‖²/2) by a bias of the columns (W1b): a node looks at
        nodes like itself, not at those of a large norm; "cosine": ψ has length 1, and scale is the inverse temperature.
    residual: y = s + γ (walk(s) - s), γ a learned number that starts at 0: exactly the identity at step 0 (where the walk is
        finite). ψ, μ and β have gradients from the second step on; `parameter_groups` has the rates that γ, μ, β need.
    norm: the normalisation of Ψ, as in `PsiProjection`.
    channels_last: features are (B, *S, C), or tokens (B, N, C) on the seed's grid in scan order; the seed stays (B, K, *S).
        Where sizes fit both readings (H == C) nothing can tell that the flag is wrong.
    precision, backend: as in `cascaded_random_walk`; a named backend runs Ψ, too. In evaluation without gradients, with the
        affinity "dot" and a batch normalisation (or none), a backend that can runs both in one launch (docs/cuda.md).

    forward(seed (B, K, *S), features, mask=None) -> (B, K, *S); with return_steps the tuple (y¹, ..., yᵀ). features: T maps
        (B, C_t, *S_t) as a sequence or a dict in its order; for one walk also the map itself. mask: bool (B, *S) on the grid
        of the seed, as in `cascaded_random_walk`; the statistics and the pooling of Ψ do not see it.
    Parameters: Ψ, one raw value per walk for μ and for β, and γ (1,) if residual; `mu` and `beta` are the probabilities,
    sigmoid(-raw), in fp32 also under autocast. Gradients and errors as in `cascaded_random_walk` and `psi_projection`.

    >>> walk = CascadedRandomWalk(in_channels=(3, 256))
    >>> scores, image, block = torch.randn(1, 21, 41, 41), torch.randn(1, 3, 321, 321), torch.randn(1, 256, 81, 81)
    >>> walk(scores, [image, block]).shape
    torch.Size([1, 21, 41, 41])
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        in_channels: Sequence[int] = (3, 256, 512, 1024, 2048),
        embed_dim: int = 64,
        *,
        gate: float = 0.5,
        scale: float | str = 1.0,
        affinity: str = "dot",
        residual: bool = False,
        norm: str | Callable[[int], nn.Module] | None = "batch",
        channels_last: bool = False,
        precision: str = "high",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_counts("in_channels", in_channels)
        check_count("embed_dim", embed_dim)
        _check_gate(gate)
        _check_scale(scale)
        if affinity not in AFFINITIES:
            raise ValueError(f"affinity must be one of {AFFINITIES}; got {affinity!r}.")
        check_precision(precision)
        backends.check_name(backend)
        self.gate, self.affinity, self.channels_last = gate, affinity, channels_last
        self.scale = embed_dim**-0.5 if scale == "sqrt" else float(scale)
        self.precision, self.backend = precision, backend
        self.psi = nn.ModuleList(PsiProjection(channels, embed_dim, norm=norm) for channels in in_channels)
        self.mu_raw = nn.Parameter(torch.empty(len(in_channels)))
        self.beta_raw = nn.Parameter(torch.empty(len(in_channels)))
        # one value, not a scalar: sharded training takes no parameter without an axis
        self.register_parameter("gamma", nn.Parameter(torch.empty(1)) if residual else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every gate at `gate`, γ at 0; each Ψ has a method of its own."""
        for raw in (self.mu_raw, self.beta_raw):
            raw.copy_(-torch.logit(torch.full_like(raw, self.gate)))
        if self.gamma is not None:
            self.gamma.zero_()

    @property
    def mu(self) -> Tensor:
        """(T,) how far each walk follows P instead of returning to the seed."""
        return torch.sigmoid(-self.mu_raw.float())

    @property
    def beta(self) -> Tensor:
        """(T,) how much of each walk is kept against the state before it."""
        return torch.sigmoid(-self.beta_raw.float())

    def embeddings(self, features: Features, grid: Sequence[int], *, batch: int | None = None) -> list[Tensor]:
        """The T embeddings ψₜ (B, D, *grid) whose inner products are the logits: scale and affinity are in them.

        batch: what the features must have, as the seed has it; None leaves it open.
        """
        maps = read_features(features, [_channels(project) for project in self.psi], grid, self.channels_last, batch)
        psi = [project(x, grid, backend=self.backend) for project, x in zip(self.psi, maps, strict=True)]
        if self.affinity == "cosine":
            psi = [normalize(p, dim=1) for p in psi]
        return psi if self.scale == 1.0 else [p * self.scale**0.5 for p in psi]

    def bias(self, psi: Sequence[Tensor]) -> list[Tensor] | None:
        """What the affinity adds to the columns of each walk (B, *grid), for ψ as `embeddings` returns them."""
        if self.affinity != "gaussian":
            return None
        return [p.to(accumulation_dtype(p, [])).square().sum(1) * -0.5 for p in psi]

    def forward(
        self, seed: Tensor, features: Features, mask: Tensor | None = None, *, return_steps: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        traced = isinstance(seed, torch.fx.Proxy)
        if not traced:
            check_field("seed", seed)
        one = "" if traced else projected.backend_for(self.backend, seed.device)
        if one and (maps := self._maps_for_one_operator(one, seed, features, mask)) is not None:
            of = (self.mu, self.beta, mask, self.scale, self.precision, return_steps)
            walked = projected.projected_cascade(one, self.psi, seed, maps, *of)
        else:
            psi = self.embeddings(features, seed.shape[2:], batch=None if traced else seed.shape[0])
            more: dict[str, Any] = {"precision": self.precision, "backend": self.backend, "return_steps": return_steps}
            walked = cascaded_random_walk(seed, psi, self.mu, self.beta, bias=self.bias(psi), mask=mask, **more)
        if self.gamma is None:
            return walked
        gamma = self.gamma.to(seed.dtype)
        if isinstance(walked, tuple):
            return tuple(seed + gamma * (y - seed) for y in walked)
        return seed + gamma * (walked - seed)

    def _maps_for_one_operator(
        self, backend: str, seed: Tensor, features: Features, mask: Tensor | None
    ) -> list[Tensor] | None:
        """What Ψ reads, where `backend` can run Ψ and the cascade as one operator; None where two are called."""
        if type(self) is not CascadedRandomWalk or self.affinity != "dot":
            return None
        channels = [_channels(project) for project in self.psi]
        maps = read_features(features, channels, seed.shape[2:], self.channels_last, seed.shape[0])
        gates = (self.mu_raw, self.beta_raw)
        return maps if projected.fits(backend, self.psi, seed, maps, gates, mask, self.precision) else None

    def extra_repr(self) -> str:
        own = f"scale={self.scale:.4g}, affinity={self.affinity!r}, residual={self.gamma is not None}"
        return own + (", channels_last=True" if self.channels_last else "")


def _channels(project: nn.Module) -> int | None:
    """What Ψ reads; None for another module in its place, and where a weight is flat because it is sharded."""
    weight = getattr(project, "weight", None)
    return weight.shape[1] if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _check_gate(gate: float) -> None:
    if isinstance(gate, bool) or not isinstance(gate, (int, float)):
        raise TypeError(f"gate must be a probability strictly between 0 and 1; got {gate!r} ({type(gate).__name__}).")
    if not 0.0 < gate < 1.0:
        raise ValueError(f"gate must be a probability strictly between 0 and 1; got {gate}.")


def _check_scale(scale: float | str) -> None:
    rule = 'scale must be a positive number, or "sqrt" for 1/√D'
    if scale == "sqrt":
        return
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"{rule}; got {scale!r}.")
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"{rule}; got {scale}.")
