"""Problems of Ψ and the cascade in one launch: a walk in evaluation, its seed and its feature maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels import CascadedRandomWalk
from difnet_kernels.backends import BACKENDS
from tests.cuda import host_backend
from tests.support.cases import DTYPES, normal
from tests.support.tolerances import HALF_ULP, Setting, assert_each

OPS = torch.ops.difnet_kernels
NAME = host_backend.NAME
# batch, classes, grid, embed, and (channels, size) of every map: windows that fit, overlap, hold one pixel or are wider
# than the map, one to three axes; row tiles full and not
Sizes = tuple[int, int, tuple[int, ...], int, tuple[tuple[int, tuple[int, ...]], ...]]
SMALL: Sizes = (2, 4, (7, 9), 16, ((3, (30, 33)), (20, (11, 13)), (70, (7, 9))))
CASES: dict[str, Sizes] = {
    "three maps": SMALL,
    "a signal": (2, 2, (37,), 5, ((3, (150,)), (6, (37,)))),
    "a volume": (1, 3, (2, 3, 7), 33, ((16, (5, 6, 7)), (2, (3, 9, 20)))),
    "two row tiles": (1, 21, (5, 20), 64, ((3, (41, 90)), (130, (9, 20)))),
    "wide channels": (1, 5, (3, 4), 64, ((2048, (5, 4)), (1024, (3, 4)))),
    "many classes": (1, 60, (5, 20), 64, ((3, (41, 45)), (40, (9, 20)))),
    "wider than the map": (3, 23, (4, 17), 3, ((1, (2, 3)), (17, (1, 1)))),
}


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, NAME, host_backend.BACKEND)


def walk_of(sizes: Sizes = SMALL, **options: Any) -> Any:
    """In evaluation, with lively parameters and slopes of both signs."""
    _, _, _, embed, maps = sizes
    options = {"backend": NAME, "scale": 2.0 / embed**0.5, **options}
    made: Any = CascadedRandomWalk([channels for channels, _ in maps], embed, **options).eval()
    with torch.no_grad():
        for number, project in enumerate(made.psi):
            norm = project.norm
            drawn = [project.weight, project.bias]
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.copy_(0.5 + normal(99 - number, embed).abs())
                drawn += [norm.weight, norm.bias, norm.running_mean]
            for place, x in enumerate(drawn):
                x.copy_(normal(100 + 10 * number + place, *x.shape))
            project.weight.mul_(project.weight.shape[1] ** -0.5)
        for raw, number in ((made.mu_raw, 1), (made.beta_raw, 2)):
            raw.copy_(normal(number, *raw.shape))
        if made.gamma is not None:
            made.gamma.fill_(0.75)
    return made


def inputs_of(sizes: Sizes = SMALL, dtype: str = "fp32") -> tuple[Tensor, list[Tensor]]:
    batch, classes, grid, _, maps = sizes
    seed = normal(7, batch, classes, *grid) * 2.0 ** -torch.arange(classes).view(-1, *(1,) * len(grid))
    features = [normal(20 + t, batch, channels, *size) for t, (channels, size) in enumerate(maps)]
    return seed.to(DTYPES[dtype]), [x.to(DTYPES[dtype]) for x in features]


@torch.no_grad()
def truth(walk: Any, seed: Tensor, features: list[Tensor], mask: Tensor | None = None) -> tuple[list[Tensor], float]:
    """Every step in fp64, and the largest logit."""
    exact: Any = copy.deepcopy(walk).double()
    exact.backend = "reference"
    maps = [x.double() for x in features]
    psi = exact.embeddings(maps, seed.shape[2:])
    steps = exact(seed.double(), maps, mask, return_steps=True)
    return list(steps), max(p.square().sum(1).max().item() for p in psi)


def assert_right(steps: tuple[Tensor, ...], true: list[Tensor], logit: float, dtypes: set[torch.dtype]) -> None:
    """Within the bound of a walk of given ψ: those of the launch are as good as fp32 makes them."""
    bound = Setting(frozenset(dtypes), len(true), logit).walk
    if torch.float32 not in dtypes:  # ψ itself is rounded, where the truth is not
        bound += 2 * HALF_ULP[next(iter(dtypes))] * logit
    for t, (ours, exact) in enumerate(zip(steps, true, strict=True)):
        assert_each(f"step {t}", 1, ours, exact, bound)
