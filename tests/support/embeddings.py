"""Kinds of embeddings: what psi looks like decides which branch of a kernel runs, because S = psi psi^T has no 1/√D.

Each function makes (B, D, *grid) in fp64. Node order matters: kernels go tile by tile and keep a running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

Fill = Callable[[Generator, int, int, tuple[int, ...]], Tensor]


def _normal(chance: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=chance, dtype=torch.float64)


def _direction(chance: Generator, batch: int, embed: int) -> Tensor:
    return torch.nn.functional.normalize(_normal(chance, batch, embed, 1), dim=1)


def _nodes_to_grid(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.reshape(*x.shape[:2], *grid)


def smooth(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Logits of a few units: hundreds of nodes share the weight of a row."""
    return _normal(chance, batch, embed, *grid) * (1.2 / embed**0.25)


def photo(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """As in a network: smooth along the grid, norms² 60 to 550; a node looks at itself and at what resembles it."""
    nodes = math.prod(grid)
    place = torch.arange(nodes, dtype=torch.float64).expand(batch, 1, nodes)
    pitch = 0.03 * (1 + _normal(chance, batch, embed, 1).abs())
    waves = torch.cos(pitch * place + 6.3 * torch.rand((batch, embed, 1), generator=chance, dtype=torch.float64))
    wanted = 60 + 490 * torch.rand((batch, 1, 1), generator=chance, dtype=torch.float64)
    waves = waves * (wanted / waves.square().sum(1, keepdim=True).amax(-1, keepdim=True).clamp_min(1e-3)).sqrt()
    return _nodes_to_grid(waves + 0.3 * _normal(chance, batch, embed, nodes) / embed**0.5, grid)


def maps(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """A few smooth maps lifted to D channels, norms² 60 to 550, as of a photograph: weights fade with the distance through
    the denormal numbers, where random embeddings drop to zero at once."""
    nodes = math.prod(grid)
    place = torch.linspace(0, 1, nodes, dtype=torch.float64)
    pitch = 2 + 8 * torch.rand((batch, 6, 1), generator=chance, dtype=torch.float64)
    few = torch.cos(pitch * place + 6.3 * torch.rand((batch, 6, 1), generator=chance, dtype=torch.float64))
    lifted = (_normal(chance, batch, embed, 6) / embed**0.5) @ few
    wanted = 60 + 490 * torch.rand((batch, 1, 1), generator=chance, dtype=torch.float64)
    largest = lifted.square().sum(1, keepdim=True).amax(-1, keepdim=True).clamp_min(1e-3)
    return _nodes_to_grid(lifted * (wanted / largest).sqrt(), grid)


def one_hot(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Independent nodes of norm² about 200: nearly every row of P is a unit vector."""
    return _normal(chance, batch, embed, *grid) * (200 / embed) ** 0.5


def brightening(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """One direction, norms² 0 to 400 in node order: S_ij - S_ii reaches 100, and the running maximum must follow."""
    nodes = math.prod(grid)
    length = torch.linspace(0, 20, nodes, dtype=torch.float64)
    return _nodes_to_grid(_direction(chance, batch, embed) * length + 0.05 * _normal(chance, batch, embed, nodes), grid)


def darkening(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """The reverse: the row maximum lies before the diagonal tile."""
    return brightening(chance, batch, embed, grid).flatten(2).flip(-1).reshape(batch, embed, *grid)


def shuffled(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """The same norms in a random order: some rows of a tile must rescale while their neighbours must not."""
    order = torch.randperm(math.prod(grid), generator=chance)
    return brightening(chance, batch, embed, grid).flatten(2)[..., order].reshape(batch, embed, *grid)


def equal(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """All nodes alike, norm² 150: P is exactly 1/N."""
    return (_direction(chance, batch, embed) * 150**0.5).expand(-1, -1, math.prod(grid)).reshape(batch, embed, *grid)


def outlier(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Small norms but for the last node, towards which half of the others lean: logits near ±140 in the ragged tile."""
    x = smooth(chance, batch, embed, grid).flatten(2)
    x[..., -1] = 100 * _direction(chance, batch, embed)[..., 0]
    return _nodes_to_grid(x, grid)


def offset(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """A common vector of norm² 400 under differences of a few units: logits must carry nine more bits than it seems."""
    return smooth(chance, batch, embed, grid) * 0.7 + (_direction(chance, batch, embed) * 20).reshape(
        batch, embed, *(1,) * len(grid)
    )


def clusters(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Runs of 64 nodes near one of a few far-apart centres: whole tiles weigh less than a rounding error."""
    nodes = math.prod(grid)
    centres = _normal(chance, batch, embed, nodes // 64 + 1)
    centres = 16 * torch.nn.functional.normalize(centres, dim=1)
    mine = centres[..., torch.arange(nodes) // 64]
    return _nodes_to_grid(mine + 0.5 * _normal(chance, batch, embed, nodes) / embed**0.5, grid)


def arc(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Along half a circle, 0.1 from node to node: weights fade with the distance, and tiles are near, far and between."""
    nodes = math.prod(grid)
    radius = max(0.1 * nodes / 3, 1.0)
    angle = 0.1 / radius * torch.arange(nodes, dtype=torch.float64)
    x = 0.02 * _normal(chance, batch, embed, nodes)
    x[:, 0] += radius * angle.cos()
    x[:, -1] += radius * angle.sin()
    return _nodes_to_grid(x, grid)


def opposed(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """Even and odd nodes point away from each other with norm² 1.6e5: half of the logits are below -1e5."""
    nodes = math.prod(grid)
    sign = 1.0 - 2.0 * (torch.arange(nodes) % 2)
    return _nodes_to_grid(
        _direction(chance, batch, embed) * sign * 400 + 0 * _normal(chance, batch, embed, nodes), grid
    )


def zero(chance: Generator, batch: int, embed: int, grid: tuple[int, ...]) -> Tensor:
    """S = 0: the uniform mean, and a padded column (whose logit is 0 too) would count in full."""
    return torch.zeros((batch, embed, *grid), dtype=torch.float64)


REGIMES: dict[str, Fill] = {
    fill.__name__: fill
    for fill in (
        smooth,
        photo,
        maps,
        one_hot,
        brightening,
        darkening,
        shuffled,
        equal,
        outlier,
        offset,
        clusters,
        arc,
        opposed,
        zero,
    )
}
