"""The named problems of the paper, and the small shapes on the edges of the kernels' tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.support.embeddings import REGIMES

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """Sizes of one cascade (B, K, *grid) with embeddings (B, D, *grid), and the kind of embedding that fills it."""

    batch: int
    grid: tuple[int, ...]
    embed: int
    classes: int
    walks: int = 1
    regime: str = "photo"
    name: str = ""

    @property
    def nodes(self) -> int:
        return math.prod(self.grid)

    def __str__(self) -> str:
        sizes = f"B{self.batch}-N{'x'.join(map(str, self.grid))}-D{self.embed}-K{self.classes}-T{self.walks}"
        return self.name or f"{sizes}-{self.regime}"

    def with_(self, **changes: object) -> Case:
        return replace(self, name="", **changes)  # type: ignore[arg-type]


# the problems that are measured (benchmarks/cases.py has what each of them is; tests/benchmarks holds the two lists equal)
PAPER = {
    case.name: case
    for case in (
        Case(1, (41, 41), 64, 21, name="train321_one"),
        Case(16, (41, 41), 64, 21, name="train321"),
        Case(1, (64, 64), 64, 21, name="eval505"),
        Case(1, (101, 101), 64, 21, name="eval505_h5"),
        Case(1, (64, 64), 128, 60, name="context60"),
        Case(1, (128, 128), 64, 21, name="highres1024"),
        Case(4, (128, 128), 64, 21, name="batch4_16k"),
    )
}

# one below, at and above every lane block (16, 32) and tile (64, 128), primes, and the paper's small grids
NODES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 193, 255, 257, 841, 1681)
CLASSES = (1, 2, 5, 16, 20, 21, 32, 33, 60, 150)
EMBEDS = (1, 3, 16, 32, 63, 64, 65, 128, 200)
WALKS = (1, 2, 3, 5)


def _grid(nodes: int) -> tuple[int, ...]:
    side = math.isqrt(nodes)
    return (side, side) if side > 1 and side * side == nodes else (nodes,)


# every N once; K, D, T and B rotate with coprime periods, so their combinations differ from row to row
SHAPES = tuple(
    Case(
        batch=1 + i % 3 if nodes <= 257 else 1,
        grid=_grid(nodes),
        embed=EMBEDS[(4 * i + 2) % len(EMBEDS)],
        classes=CLASSES[(7 * i + 5) % len(CLASSES)],
        walks=WALKS[i % len(WALKS)] if nodes <= 257 else 2,
    )
    for i, nodes in enumerate(NODES)
)
# every kind of embedding on a ragged grid of one, two and four tiles
REGIME_CASES = tuple(Case(2, (nodes,), 16, 5, 2, regime) for regime in REGIMES for nodes in (33, 127, 193))
# a handful that reaches every branch quickly, for tests whose truth does not depend on the shape
FEW = (
    Case(2, (7,), 3, 2, 2),
    Case(1, (5, 13), 16, 5, 3),
    Case(2, (129,), 64, 21, 1),
    Case(3, (65,), 32, 21, 2, "smooth"),
    Case(1, (193,), 16, 5, 2, "brightening"),
    Case(2, (2, 3, 11), 8, 33, 1, "clusters"),
)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one cascade, and the gradient of the loss with respect to its result."""

    seed: Tensor
    psi: list[Tensor]
    mu: Tensor
    beta: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same rounded numbers in another dtype; gates are never narrower than fp32."""
        gates = torch.promote_types(dtype, torch.float32)
        psi = [p.to(dtype) for p in self.psi]
        return Inputs(self.seed.to(dtype), psi, self.mu.to(gates), self.beta.to(gates), self.grad.to(dtype))

    @property
    def largest_logit(self) -> float:
        """G = max_i ‖psi_i‖², which is the largest entry of every S = psi psi^T."""
        return max((p.double().square().sum(1).max().item() for p in self.psi if p.numel()), default=0.0)


def placed(x: Tensor) -> Tensor:
    """x on torch's default device, which is that of the backend under test."""
    return x.to(torch.get_default_device())


def normal(number: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbered standard normal values, the same on every device."""
    chance = torch.Generator().manual_seed(number)
    return placed(torch.randn(shape, generator=chance, dtype=dtype, device="cpu"))


def make(case: Case, dtype: torch.dtype = torch.float32, number: int = 0) -> Inputs:
    """The numbered inputs of a case: scores of a few units with an offset, gates away from 0, 1 and each other."""
    with torch.device("cpu"):
        seed, psi, mu, beta, grad = _drawn(case, number)
    return Inputs(placed(seed), [placed(p) for p in psi], placed(mu), placed(beta), placed(grad)).to(dtype)


def _drawn(case: Case, number: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1000 * number + case.nodes + 7 * case.classes + 13 * case.embed)
    shape = (case.batch, case.classes, *case.grid)
    fill = REGIMES[case.regime]
    psi = [fill(chance, case.batch, case.embed, case.grid) for _ in range(case.walks)]
    seed = 2 * torch.randn(shape, generator=chance, dtype=torch.float64) + 0.5
    grad = torch.randn(shape, generator=chance, dtype=torch.float64) + 0.2
    mu = 0.3 + 0.6 * torch.rand(case.walks, generator=chance, dtype=torch.float64)
    beta = 0.3 + 0.6 * torch.rand(case.walks, generator=chance, dtype=torch.float64)
    return seed, psi, mu, beta, grad


def named(cases: Iterable[Case]) -> dict[str, object]:
    """Arguments of pytest.mark.parametrize for the fixture name `case`."""
    cases = list(cases)
    return {"argnames": "case", "argvalues": cases, "ids": [str(case) for case in cases]}
