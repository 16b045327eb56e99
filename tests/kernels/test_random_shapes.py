"""Shapes, dtypes, strides and embeddings at random; a failure prints the number that makes it again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.capability import device_of, takes
from tests.support.cases import Case, Inputs, make
from tests.support.embeddings import REGIMES
from tests.support.truth import assert_forward, assert_gradients, both, truth_of

NUMBERS = range(100)
KINDS = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
pytestmark = pytest.mark.usefixtures("poisoned")


def _drawn(number: int, kinds: Sequence[torch.dtype]) -> tuple[str, Inputs]:
    """Problem `number`: small mostly, sometimes of several tiles, each field with its own dtype of `kinds` and strides."""
    dice = random.Random(number)
    axes = dice.choice((1, 1, 2, 2, 2, 3))
    grid = tuple(dice.randint(1, {1: 300, 2: 17, 3: 6}[axes]) for _ in range(axes))
    case = Case(
        batch=dice.choice((1, 1, 2, 3, 5)),
        grid=grid,
        embed=dice.choice((1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100)),
        classes=dice.choice((1, 2, 3, 5, 7, 8, 9, 15, 16, 21, 31, 32, 40)),
        walks=dice.choice((1, 1, 2, 3, 5)),
        regime=dice.choice(sorted(REGIMES)),
    )
    inputs = make(case, torch.float64, number)

    def varied(x: Tensor) -> Tensor:
        x = x.to(dice.choice(kinds))
        layout = dice.choice(("plain", "nodes first", "padded", "reversed axes"))
        if layout == "nodes first":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == "padded":
            return torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
        if layout == "reversed axes":
            return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        return x

    seed = varied(inputs.seed)
    psi = [varied(p) for p in inputs.psi]
    accumulate = torch.float64 if any(x.dtype == torch.float64 for x in (seed, *psi)) else torch.float32
    grad = varied(inputs.grad).to(seed.dtype)
    drawn = replace(inputs, seed=seed, psi=psi, grad=grad, mu=inputs.mu.to(accumulate), beta=inputs.beta.to(accumulate))
    return f"{case}, seed {seed.dtype}, psi {[p.dtype for p in psi]}", drawn


@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.smoke] * (n < 6)) for n in NUMBERS])
def test_a_random_problem(backend: str, number: int) -> None:
    told, inputs = _drawn(number, [kind for kind in KINDS if takes(backend, device_of(backend), kind)])
    print(f"problem {number}: {told}")
    result, truth = both(inputs, backend), truth_of(inputs)
    assert_forward(result.state, inputs, truth)
    assert_gradients(result, inputs, truth)
