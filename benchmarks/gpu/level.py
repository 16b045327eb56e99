"""One level of Ψ, straight at the backend: a feature map with room for every output, and its truth in fp64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from benchmarks.correctness import SPACING, Verdict
from benchmarks.cost import h200
from benchmarks.gpu.stage import BACKEND

# one product of fp16 halves keeps 22 bits of each factor; positions may differ where two pixels are that close
FORWARD, BACKWARD = 4e-6, 2e-5
# the layers of torch round W, z and the result to the type of the features; their fp32 convolution takes TF32
LAYERS, TF32 = 4, 2.0**-10

Fresh = Callable[..., Tensor]


@dataclass
class Level:
    """One feature map (B, C, n, n), its projection, and room for every output of the backend, made by `fresh`."""

    features: Tensor
    weight: Tensor
    slope: Tensor
    grid: int
    training: bool
    fresh: Fresh = torch.empty

    @staticmethod
    def draw(
        batch: int,
        channels: int,
        side: int,
        grid: int,
        embed: int,
        dtype: torch.dtype,
        *,
        channels_last: bool,
        training: bool,
        fresh: Fresh = torch.empty,
        device: str = "cuda",
    ) -> Level:
        chance = torch.Generator().manual_seed(7)
        features = torch.randn((batch, channels, side, side), generator=chance).to(device, dtype)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        weight = (torch.randn((embed, channels), generator=chance) * channels**-0.5).to(device)
        slope = torch.where(torch.arange(embed) % 3 == 1, -1.0, 1.0).to(device)
        return Level(features, weight, slope, grid, training, fresh)

    def __post_init__(self) -> None:
        B, D, device = self.features.shape[0], self.weight.shape[0], self.features.device
        nodes = (B, 1, self.grid, self.grid, D)
        self.peak = self.fresh(nodes, device=device).permute(0, 4, 1, 2, 3)
        self.position = self.fresh(nodes, device=device, dtype=torch.int32).permute(0, 4, 1, 2, 3)
        self.mean, self.variance = (self.fresh(D, device=device) for _ in range(2))
        self.grad_peak = torch.randn(nodes, device=device).permute(0, 4, 1, 2, 3)
        self.grad_mean, self.grad_variance = (torch.randn(D, device=device) for _ in range(2))
        self.grad_weight = self.fresh(self.weight.shape, device=device)
        # an image needs no gradient
        self.grad_features = None
        if self.features.shape[1] > 3:
            B, C, Y, X = self.features.shape
            if self.features.is_contiguous():
                self.grad_features = self.fresh((B, C, Y, X), device=device, dtype=self.features.dtype)
            else:
                last = self.fresh((B, Y, X, C), device=device, dtype=self.features.dtype)
                self.grad_features = last.permute(0, 3, 1, 2)

    @property
    def read_once(self) -> float:
        """Microseconds that an H200 takes to read the features."""
        return 1e6 * self.features.numel() * self.features.element_size() / h200().bytes_per_s

    def forward(self) -> list[Tensor]:
        backend = importlib.import_module(f"difnet_kernels.backends.{BACKEND}")
        kept = (self.mean, self.variance) if self.training else (None, None)
        backend.projection_forward(
            self.features.unsqueeze(2), self.weight, self.slope, peak=self.peak, position=self.position, mean=kept[0],
            variance=kept[1],
        )  # fmt: skip
        return [self.peak, self.position, *(x for x in kept if x is not None)]

    def both(self) -> list[Tensor]:
        backend = importlib.import_module(f"difnet_kernels.backends.{BACKEND}")
        made = self.forward()
        kept = (self.grad_mean, self.grad_variance, self.mean) if self.training else (None, None, None)
        grad_features = self.grad_features
        backend.projection_backward(
            self.grad_peak, kept[0], kept[1], self.features.unsqueeze(2), self.weight, self.position, kept[2],
            grad_features=None if grad_features is None else grad_features.unsqueeze(2), grad_weight=self.grad_weight,
        )  # fmt: skip
        return [*made, self.grad_weight, *([] if grad_features is None else [grad_features])]

    def layers(self) -> tuple[nn.Module, Tensor]:
        """Conv, BN and pooling as modules, and a leaf of the features."""
        conv = nn.Conv2d(self.weight.shape[1], self.weight.shape[0], 1)
        norm = nn.BatchNorm2d(self.weight.shape[0])
        model = nn.Sequential(conv, norm, nn.AdaptiveMaxPool2d(self.grid))
        model = model.to(self.features.device, self.features.dtype)
        with torch.no_grad():
            conv.weight.copy_(self.weight[:, :, None, None])
            conv.bias.zero_()
            norm.weight.copy_(self.slope)
        model.train(self.training)
        return model, self.features.detach().clone().requires_grad_(self.grad_features is not None)


def judge(level: Level) -> Verdict:
    """What `both` has left in the level against Ψ1-Ψ4 in fp64, an image at a time: it needs little memory at any size."""
    weight, sign = level.weight.double(), level.slope.double()[:, None, None]
    images = range(level.features.shape[0])
    pixels = len(images) * level.features[0, 0].numel()

    def z_of(b: int) -> Tensor:
        return torch.einsum("dc,cyx->dyx", weight, level.features[b].double())

    checks = []
    mean = torch.zeros(len(weight), 1, 1, dtype=torch.float64, device=weight.device)
    if level.training:
        mean = torch.stack([z_of(b).sum((1, 2)) for b in images]).sum(0)[:, None, None] / pixels
        squares = torch.stack([(z_of(b) - mean).square().sum((1, 2)) for b in images])
        checks.append(("variance", _worst(level.variance / (squares.sum(0) / pixels) - 1), 1.0, BACKWARD))
    peak, place, moved, largest, size = 0.0, 0.0, 0.0, 0.0, 0.0
    grad_weight = torch.zeros_like(weight)
    for b in images:
        features, z = level.features[b].double(), z_of(b)
        size = max(size, _worst(torch.einsum("dc,cyx->dyx", weight.abs(), features.abs())))
        best = adaptive_max_pool2d(sign * z, level.grid) * sign
        position = level.position[b].flatten(1).long()
        peak = max(peak, _worst(level.peak[b].squeeze(1) - best), key=_or_infinite)
        place = max(place, _worst(z.flatten(1).gather(1, position) - best.flatten(1)), key=_or_infinite)
        grad = torch.zeros_like(z).flatten(1)
        grad = grad.scatter_add_(1, position, level.grad_peak[b].flatten(1).double()).view_as(z)  # (Ψ2)
        if level.training:
            grad += level.grad_mean.double()[:, None, None] / pixels
            grad += 2 * (z - mean) * level.grad_variance.double()[:, None, None] / pixels
        grad_weight += torch.einsum("dyx,cyx->dc", grad, features)  # (Ψ4)
        if level.grad_features is not None:
            true = torch.einsum("dc,dyx->cyx", weight, grad)  # (Ψ3)
            moved = max(moved, _worst(level.grad_features[b] - true), key=_or_infinite)
            largest = max(largest, _worst(true))
    checks += [("peak", peak, size, FORWARD), ("position", place, size, FORWARD)]
    checks.append(("grad_weight", _worst(level.grad_weight - grad_weight), _worst(grad_weight), BACKWARD))
    if level.training:
        checks.append(("mean", _worst(level.mean - mean.flatten()), size, FORWARD))
    if level.grad_features is not None:
        stored = SPACING.get(level.features.dtype, 0.0)
        checks.append(("grad_features", moved, largest, BACKWARD + stored))
    worst, error, scale, bound = max(checks, key=lambda check: _or_infinite(check[1] / check[2] / check[3]))
    return Verdict(error / scale, bound, worst)


def judge_layers(level: Level, made: Tensor) -> Verdict:
    """The pooled, normalised field of the layers against the backend's own, which `judge` has compared before."""
    mean, variance = (level.mean, level.variance) if level.training else (torch.zeros_like(level.mean), 1.0)
    scale = level.slope / (variance + nn.BatchNorm2d(1).eps) ** 0.5
    ours = (level.peak.squeeze(2) - mean[:, None, None]) * scale[:, None, None]
    bound = LAYERS * SPACING.get(level.features.dtype, TF32)
    return Verdict(_worst(made - ours) / _worst(ours), bound, "pooled field of the layers")


def _worst(x: Tensor) -> float:
    return x.detach().abs().max().item()


def _or_infinite(error: float) -> float:
    return error if error == error else float("inf")
