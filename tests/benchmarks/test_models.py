"""Table 4's diffusion is judged with the gradients that a training step asks of it, and a wrong one gets no time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks import models as table4
from benchmarks.device import Rehearsal, device
from benchmarks.models import ModelsTask, Networks
from benchmarks.peers import CONTENDERS, Cascade, cascade_of, dense_walk
from benchmarks.questions import models
from benchmarks.tasks import FAILED, MEASURED
from models.networks import builder

CPU = device("cpu")
TRAINING = "forward+backward"
PEERS = ("ours", "dense", "sdpa")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelsTask]:
    """The task on tiny networks and a small image."""
    build = builder.build_model
    monkeypatch.setattr(builder, "build_model", lambda name: build(f"{name.rstrip('0123456789')}_tiny"))
    monkeypatch.setattr(table4, "SIDE", 65)

    def task(direction: str, *contenders: str) -> ModelsTask:
        asked = next(task for task in models(False) if task.direction == direction)
        return replace(asked, contenders=contenders or asked.contenders, seconds=0.1)

    return task


@pytest.mark.parametrize("direction", ["forward", TRAINING])
def test_every_row_is_measured_and_the_diffusion_is_judged(small, direction: str):
    rows = {row.contender: row for row in small(direction).measure(CPU)}
    assert {name for name, row in rows.items() if row.status != MEASURED} == {"diffusion_replayed"}
    assert all((rows[name].error is not None) == (name in PEERS) for name in rows)


def test_training_uses_the_statistics_of_the_batch_and_inference_does_not(small):
    for direction in ("forward", TRAINING):
        networks = Networks(small(direction), CPU)
        assert networks.difnet.training == networks.baseline.training == (direction == TRAINING)
        learned = [networks.seed, *networks.levels[1:]]
        assert {x.requires_grad for x in learned} == {direction == TRAINING}
        assert not networks.levels[0].requires_grad


def test_the_timed_step_asks_for_everything_that_training_asks_for(small, monkeypatch: pytest.MonkeyPatch):
    networks, asked = Networks(small(TRAINING), CPU), []
    call, _ = networks.prepare("ours")
    grad = torch.autograd.grad

    def watched(outputs, inputs, *rest):
        asked.extend(inputs)
        return grad(outputs, inputs, *rest)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    call()
    expected = [networks.seed, *networks.levels[1:], *networks.difnet.walk.parameters()]
    assert [id(x) for x in asked] == [id(x) for x in expected]


class Scaled(torch.autograd.Function):
    """The identity with a gradient that is 1 % too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def wrong_seed(seed, psi, mu, beta):
    return cascade_of(dense_walk)(Scaled.apply(seed), psi, mu, beta)


def wrong_embedding(seed, psi, mu, beta):
    return cascade_of(dense_walk)(seed, [*psi[:3], Scaled.apply(psi[3]), *psi[4:]], mu, beta)


@pytest.mark.parametrize(
    ("wrong", "where"), [(wrong_seed, "seed"), (wrong_embedding, r"level 3|psi.3.weight")], ids=["seed", "psi"]
)
def test_a_wrong_gradient_of_a_contender_gets_no_time(small, monkeypatch, wrong: Cascade, where: str):
    monkeypatch.setitem(CONTENDERS, "dense", replace(CONTENDERS["dense"], build=lambda _: wrong))
    (row,) = small(TRAINING, "dense").measure(CPU)
    assert row.status == FAILED
    assert re.match(f"gradient of ({where}): error", row.reason)


@pytest.mark.parametrize("level", [1, 4])
def test_a_wrong_gradient_of_a_level_gets_no_time(small, level: int):
    networks = Networks(small(TRAINING), CPU)
    project = networks.difnet.walk.psi[level]
    project.register_forward_pre_hook(lambda _, inputs: (Scaled.apply(inputs[0]), *inputs[1:]))
    _, verdict = networks.prepare("ours")
    assert not verdict.passed
    assert verdict.worst == f"gradient of level {level}"


def test_a_tie_within_rounding_is_not_an_error():
    """Two pixels of a window share its maximum to rounding: the gradient may go to either of them."""
    true = torch.randn(1, 8, 20, 20, dtype=torch.float64)
    other = true.clone()
    other[0, 0, 0, 0], other[0, 0, 0, 1] = true[0, 0, 0, 1], true[0, 0, 0, 0]
    assert table4._apart(other.float(), true, 0.999) < 1e-6
    assert table4._apart(other.float(), true, 1.0) > 1e-3
    assert table4._apart(other.float().roll(1, 1), true, 0.999) > 1e-1
    other[0, 0, 0, 0] = torch.nan
    assert table4._apart(other.float(), true, 0.999) == float("inf")


@pytest.mark.parametrize("direction", ["forward", TRAINING])
def test_the_diffusion_of_a_rehearsed_card_is_replayed(direction: str):
    (row,) = replace(models(True)[direction == TRAINING], contenders=("diffusion_replayed",)).measure(Rehearsal())
    assert row.status == MEASURED
