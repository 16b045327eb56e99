"""One projection Ψ through the Triton backend, and the same one in fp64 by torch's own layers and autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d

from difnet_kernels.backends import triton as triton_backend
from tests.support.tolerances import HALF_ULP, assert_within

POOLS = {1: adaptive_max_pool1d, 2: adaptive_max_pool2d, 3: adaptive_max_pool3d}
# one product of fp16 hi and lo keeps 22 bits of each factor; sums over C and over the pixels add their roundings
FORWARD = 2e-6
BACKWARD = 4e-6
# moments of z: squares double its relative error
VARIANCE = 2 * FORWARD
# a mean far from zero: the sums run about a value of the tile's own size, so that little but the products' own 22 bits is left
LARGE_MEAN = 3e-7
# the rounding of z, about 2⁻²² of a mean of 10³ deviations, is 2·10⁻⁴ of a deviation, and twice that of a variance
SPREAD_OF_A_LARGE_MEAN = 1e-3
# one output alone, relative to itself: C = 20 products of either sign leave a value some times smaller than their sizes
ONE_PIXEL = 5 * FORWARD
# the same products, their fp32 sums in another order: some half ulps of the largest result
ADDED_IN_ANOTHER_ORDER = 16 * HALF_ULP[torch.float32]


@dataclass(frozen=True)
class Projection:
    """features (B, C, *S) -> (B, D, *grid); slope None: all positive; the gradients of peak, mean and variance."""

    features: Tensor
    weight: Tensor
    slope: Tensor | None
    grid: tuple[int, ...]
    grad_peak: Tensor
    grad_mean: Tensor | None
    grad_variance: Tensor | None

    def but(self, **changes: object) -> Projection:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass
class Answer:
    peak: Tensor
    position: Tensor
    mean: Tensor | None
    variance: Tensor | None
    grad_features: Tensor
    grad_weight: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if x is not None}


def projection(
    size: tuple[int, ...] = (9, 7),
    grid: tuple[int, ...] = (4, 5),
    channels: int = 17,
    embed: int = 5,
    batch: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    training: bool = True,
    offset: float = 0.3,
) -> Projection:
    """Random features around `offset`, slopes of every sign (0 included), gradients of every output."""
    chance = torch.Generator().manual_seed(sum(size) + 31 * channels + 101 * embed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    slope = torch.tensor([1.0, -0.7, 0.0, 0.2, -2.0]).repeat(embed)[:embed]
    weight = normal(embed, channels) * channels**-0.5
    gradients = (normal(embed), normal(embed)) if training else (None, None)
    features = (normal(batch, channels, *size) + offset).to(dtype)
    return Projection(features, weight, slope, grid, normal(batch, embed, *grid), *gradients)


def spatial(x: Tensor) -> Tensor:
    """(B, C, *S) with its leading axes filled up to three."""
    while x.dim() < 5:
        x = x.unsqueeze(2)
    return x


def _nan(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, float("nan"))


def run(p: Projection, grad_features: Tensor | None = None) -> Answer:
    """The backend on poisoned outputs: what it leaves unwritten fails every comparison."""
    features, grad_peak = spatial(p.features), spatial(p.grad_peak)
    B, D = features.shape[0], p.weight.shape[0]
    grid = tuple(grad_peak.shape[2:])
    peak = _nan((B, *grid, D)).permute(0, 4, 1, 2, 3)
    position = torch.full((B, *grid, D), -7, dtype=torch.int32).permute(0, 4, 1, 2, 3)
    training = p.grad_mean is not None or p.grad_variance is not None
    mean, variance = (_nan((D,)), _nan((D,))) if training else (None, None)
    triton_backend.projection_forward(
        features, p.weight, p.slope, peak=peak, position=position, mean=mean, variance=variance
    )
    if grad_features is None:
        grad_features = torch.empty_strided(features.shape, features.stride(), dtype=features.dtype)
    grad_features.fill_(float("nan"))
    grad_weight = _nan(tuple(p.weight.shape))
    triton_backend.projection_backward(
        grad_peak,
        p.grad_mean,
        p.grad_variance,
        features,
        p.weight,
        position,
        mean,
        grad_features=grad_features,
        grad_weight=grad_weight,
    )
    return Answer(peak, position, mean, variance, grad_features, grad_weight)


def truth(p: Projection) -> Answer:
    """1x1 product, times the sign of the slope, adaptive pooling with positions; z at the positions; autograd."""
    features, weight = p.features.double().requires_grad_(), p.weight.double().requires_grad_()
    z = torch.einsum("dc,bc...->bd...", weight, features)
    sign = torch.ones(weight.shape[0]) if p.slope is None else torch.where(p.slope.isnan(), 1.0, p.slope.sign())
    signed = z.detach() * sign.double().reshape(-1, *[1] * len(p.grid))
    _, position = POOLS[len(p.grid)](signed, p.grid, return_indices=True)
    peak = z.flatten(2).gather(2, position.flatten(2)).reshape(position.shape)
    rows = z.transpose(0, 1).flatten(1)
    mean, variance = rows.mean(1), rows.var(1, unbiased=False)
    outputs = [(peak, p.grad_peak), (mean, p.grad_mean), (variance, p.grad_variance)]
    wanted = [(x, g.double()) for x, g in outputs if g is not None]
    made = torch.autograd.grad([x for x, _ in wanted], [features, weight], [g for _, g in wanted])
    training = p.grad_mean is not None or p.grad_variance is not None
    kept = (mean.detach(), variance.detach()) if training else (None, None)
    return Answer(spatial(peak.detach()), spatial(position), *kept, spatial(made[0]), made[1])


def assert_right(p: Projection, ours: Answer | None = None) -> Answer:
    """Forward and every gradient within the bound; positions exactly, where the winner is clear in fp32."""
    ours, true = ours or run(p), truth(p)
    size = torch.einsum("dc,bc...->bd...", p.weight.double().abs(), p.features.double().abs()).max().item()
    assert_within("peak", ours.peak, true.peak, 0.0, floor=FORWARD * size)
    assert torch.equal(ours.position.long(), true.position), "positions"
    if true.mean is not None and true.variance is not None:
        assert ours.mean is not None and ours.variance is not None
        assert_within("mean", ours.mean, true.mean, 0.0, floor=FORWARD * size)
        # z carries a rounding of its own size, whatever its spread
        floor = FORWARD * size * true.variance.max().sqrt().item() + (FORWARD * size) ** 2
        assert_within("variance", ours.variance, true.variance, VARIANCE, floor=floor)
    if true.grad_features.numel():
        assert_within("grad_features", ours.grad_features, true.grad_features, BACKWARD)
        scale = p.features.double().abs().max().item() * true.grad_weight.abs().max().clamp(min=1.0).item()
        assert_within("grad_weight", ours.grad_weight, true.grad_weight, BACKWARD, floor=BACKWARD * scale)
    return ours
