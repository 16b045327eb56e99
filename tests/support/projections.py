"""Problems for Ψ, and its truth: torch's own convolution, batch normalisation and adaptive max pooling, in fp64."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difnet_kernels import PsiProjection
from tests.support.cases import DTYPES, normal

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


@dataclass(frozen=True)
class Shape:
    """Features (batch, channels, *size) to embeddings (batch, embed, *grid)."""

    batch: int
    channels: int
    embed: int
    size: tuple[int, ...]
    grid: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ["x".join(map(str, axes)) for axes in (self.size, self.grid)]
        return f"B{self.batch}-C{self.channels}-D{self.embed}-{sizes[0]}to{sizes[1]}"

    @property
    def values(self) -> int:
        """How many values of each channel a batch normalisation sees."""
        return self.batch * torch.Size(self.size).numel()


# the levels of DifNet on a crop of 321², and the image and the first block of 505² (channels of the deep levels cut down)
PAPER = (
    Shape(1, 3, 64, (321, 321), (41, 41)),
    Shape(1, 64, 64, (81, 81), (41, 41)),
    Shape(2, 96, 64, (41, 41), (41, 41)),
    Shape(1, 3, 64, (505, 505), (64, 64)),
    Shape(1, 40, 64, (127, 127), (64, 64)),
)
# one to three axes; windows that fit, overlap, hold one pixel, are wider than the map; one value; wide and narrow channels
SHAPES = (
    Shape(2, 6, 4, (37,), (9,)),
    Shape(3, 5, 17, (8,), (8,)),
    Shape(2, 6, 4, (13, 17), (5, 6)),
    Shape(2, 3, 64, (8, 10), (4, 5)),
    Shape(1, 3, 5, (2, 3), (4, 5)),
    Shape(16, 7, 16, (1, 1), (3, 2)),
    Shape(1, 2, 1, (9, 1), (2, 1)),
    Shape(2, 33, 65, (7, 6), (7, 6)),
    Shape(1, 130, 48, (5, 9), (3, 9)),
    Shape(2, 6, 4, (5, 6, 7), (2, 3, 7)),
    Shape(1, 4, 33, (3, 4, 4), (4, 2, 2)),
)


def random_shape(number: int) -> Shape:
    """At least two channels: one alone is normalised whatever its weight, which then has the gradient zero."""
    draw = random.Random(number)
    axes = draw.choice((1, 2, 2, 2, 3))
    longest = {1: 150, 2: 24, 3: 8}[axes]
    size = tuple(draw.randint(1, longest) for _ in range(axes))
    grid = tuple(draw.choice((n, draw.randint(1, max(1, n)), draw.randint(1, 10))) for n in size)
    return Shape(draw.randint(1, 3), draw.choice((2, 3, 16, 20, 70)), draw.choice((1, 3, 16, 20, 64)), size, grid)


def module(shape: Shape, number: int = 0) -> PsiProjection:
    """PsiProjection with lively parameters; slopes of both signs, so that maxima become minima in some channels."""
    made = PsiProjection(shape.channels, shape.embed)
    drawn = (made.weight, made.bias, made.norm.weight, made.norm.bias, made.norm.running_mean)
    with torch.no_grad():
        for place, x in enumerate(drawn):
            x.copy_(normal(100 + 10 * number + place, *x.shape))
        made.weight.mul_(shape.channels**-0.5)
        made.norm.running_var.copy_(0.5 + normal(109 + 10 * number, shape.embed).abs())
    return made


def composed(ours: PsiProjection, shape: Shape) -> nn.Sequential:
    """The same layer from torch's own, in fp64, with parameters and buffers of its own."""
    axes = len(shape.size)
    conv, norm = CONVS[axes](shape.channels, shape.embed, 1), NORMS[axes](shape.embed)
    with torch.no_grad():
        conv.weight.copy_(ours.weight.reshape(conv.weight.shape))
        conv.bias.copy_(ours.bias)
    norm.load_state_dict(ours.norm.state_dict())
    layers = nn.Sequential(conv, norm, POOLS[axes](shape.grid)).double()
    return copy.deepcopy(layers).train(ours.training)


def features(shape: Shape, dtype: str = "fp32", number: int = 0) -> Tensor:
    return normal(number, shape.batch, shape.channels, *shape.size).to(DTYPES[dtype])


def run(layer: nn.Module, x: Tensor, *grid: tuple[int, ...], weights: Tensor | None = None) -> list[Tensor]:
    """ψ, the gradient of x and of every parameter, for the loss ⟨weights, ψ⟩ (drawn if None), and the running buffers."""
    leaf = x.detach().requires_grad_()
    psi = layer(leaf, *grid)
    if weights is None:
        weights = normal(9, *psi.shape)
    grads = torch.autograd.grad(psi, [leaf, *layer.parameters()], weights.to(psi.dtype))
    return [psi.detach(), *grads, *(buffer.to(torch.float64, copy=True) for buffer in layer.buffers())]


NAMES = ("psi", "features", "weight", "bias", "gamma", "beta", "running_mean", "running_var", "batches")
