"""Ψ is judged before it is timed: right contenders pass in every layout, and wrong ones do not."""

from __future__ import annotations

import pytest
import torch

from benchmarks import show
from benchmarks.cases import Case
from benchmarks.device import device
from benchmarks.projection import LAYOUTS, Problem, ProjectionTask, judge, make_problem, runner
from benchmarks.questions import projection
from benchmarks.tasks import MEASURED, UNAVAILABLE, Row

SMALL = Case("small", 2, 25, 8, 21)
# windows of many features, of two that overlap, of one; the first is an image
SIZES = ((3, 31), (16, 9), (32, 5))
DIRECTIONS = ("forward", "forward+backward")


def small(direction: str) -> Problem:
    return make_problem(SMALL, SIZES, direction, torch.float32, "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("stem", ["ours", "layers", "folded"])
def test_contenders_pass(stem: str, direction: str, layout: str):
    if stem == "folded" and direction != "forward":
        assert "evaluation only" in (ProjectionTask("", SMALL, direction).why_not("folded/any", device("cpu")) or "")
        return
    problem = small(direction)
    truth = runner("layers", problem.double(), direction)()
    own = problem.laid_out(LAYOUTS[layout])
    assert all(f.is_contiguous(memory_format=LAYOUTS[layout]) for f in own.features)
    verdict = judge(own, runner(stem, own, direction)(), truth)
    assert verdict.passed, verdict


def test_products_are_exact_so_that_everyone_finds_the_same_maximum():
    problem = small("forward")
    for level, features in zip(problem.levels, problem.features, strict=True):
        assert not bool((features == 0).any())
        wide = torch.nn.functional.conv2d(features.double(), level.conv.weight.double(), level.conv.bias.double())
        assert torch.equal(level.conv(features).double(), wide)


def test_the_image_has_no_gradient_and_everything_else_does():
    problem = small("forward+backward")
    assert [f.requires_grad for f in problem.features] == [False, True, True]
    assert len(problem.wanted) == 2 + 4 * len(SIZES)


@pytest.mark.parametrize("part", ["conv.weight", "conv.bias", "norm.weight", "norm.bias"])
def test_a_wrong_gradient_does_not_get_a_time(part: str):
    """0.1 % of the largest value, in one parameter of one level."""
    problem = small("forward+backward")
    truth = runner("layers", problem.double(), "forward+backward")()
    made, grads = runner("layers", problem, "forward+backward")()
    names = [name for name, _ in problem.levels.named_parameters()]
    place = 2 + names.index(f"1.{part}")
    largest = max(g.abs().max() for g in truth[1]) if part == "conv.bias" else truth[1][place].abs().max()
    grads[place] = grads[place] + 1e-3 * largest
    verdict = judge(problem, (made, grads), truth)
    assert not verdict.passed
    assert verdict.worst == f"gradient of 1.{part}"


def test_a_wrong_embedding_does_not_get_a_time():
    problem = small("forward")
    truth = runner("layers", problem.double(), "forward")()
    made, _ = runner("layers", problem, "forward")()
    made[2] = made[2].bfloat16().float()
    assert not judge(problem, (made, []), truth).passed


def test_everyone_counts_in_the_layout_that_is_faster_for_them():
    task = projection(False)[0]

    def row(name: str, median: float) -> Row:
        return task.row(name, name, status=MEASURED, median=median)

    rows = [row("ours/contiguous", 3.0), row("ours/channels_last", 2.0), row("layers/contiguous", 4.0),
            row("layers/channels_last", 5.0),
            task.row("compiled/contiguous", "", status=UNAVAILABLE, reason="no compiler")]  # fmt: skip
    assert [found.median for found in show.fastest(rows).values()] == [2.0, 4.0, None]
    assert show.best_peer(rows) is rows[2]
    assert show.ratio(rows) == 2.0
