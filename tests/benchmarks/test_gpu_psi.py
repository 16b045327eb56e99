"""Ψ's stage of the GPU suite, run on the CPU's reference: what is wrong fails, and gets no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import machine, predicted
from benchmarks.gpu import level as levels
from benchmarks.gpu import psi
from benchmarks.gpu.level import Level, judge, judge_layers
from benchmarks.gpu.stage import Report
from benchmarks.results import FOLDER

FORMATS = [("fp32", True, True), ("fp32", False, False), ("bf16", False, True)]


@pytest.fixture(autouse=True)
def on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "BACKEND", "reference")
    monkeypatch.setattr(machine, "describe", lambda device: {"device": device})


def drawn(channels: int = 16, dtype: str = "fp32", last: bool = True, training: bool = True) -> Level:
    level = Level.draw(3, channels, 13, 5, 8, psi.DTYPES[dtype], channels_last=last, training=training, device="cpu")
    level.both()
    return level


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize(("dtype", "last", "training"), FORMATS)
def test_the_reference_passes(channels: int, dtype: str, last: bool, training: bool) -> None:
    found = judge(drawn(channels, dtype, last, training))
    assert found.passed and found.error > 0, found


def test_the_truth_is_that_of_autograd() -> None:
    """Of the loss that the gradients of a level belong to, in fp64 over the whole batch."""
    level = drawn()
    features, weight = level.features.double().requires_grad_(), level.weight.double().requires_grad_()
    z = torch.einsum("dc,bcyx->bdyx", weight, features)
    chosen = z.flatten(2).gather(2, level.position.flatten(2).long())
    loss = (chosen * level.grad_peak.flatten(2).double()).sum() + (z.mean((0, 2, 3)) * level.grad_mean.double()).sum()
    loss = loss + (z.var((0, 2, 3), unbiased=False) * level.grad_variance.double()).sum()
    loss.backward()
    assert features.grad is not None and weight.grad is not None and level.grad_features is not None
    level.grad_features.copy_(features.grad)
    level.grad_weight.copy_(weight.grad)
    assert judge(level).passed
    level.grad_features.mul_(1 + 1e-4)
    assert judge(level).worst == "grad_features"


def _add(x: Tensor, amount: float) -> None:
    x[-1] += amount  # the last image, or the last channel


def _nan(x: Tensor) -> None:
    x.view(-1)[-1] = float("nan")


FAULTS: dict[str, Callable[[Level], object]] = {
    "peak": lambda level: _add(level.peak, 1e-3),
    "position": lambda level: level.position.copy_(level.position.roll(1, -1)),
    "mean": lambda level: _add(level.mean, 1e-3),
    "variance": lambda level: level.variance.mul_(1 + 1e-4),
    "grad_weight": lambda level: _nan(level.grad_weight),
    "grad_features": lambda level: level.grad_features[-1].zero_(),  # type: ignore[index]
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_where_it_is(what: str) -> None:
    level = drawn()
    FAULTS[what](level)
    found = judge(level)
    assert not found.passed
    # another position is another gradient too
    assert found.worst == what or what == "position"


@pytest.mark.parametrize(("dtype", "last", "training"), FORMATS)
def test_the_layers_pass_and_wrong_ones_do_not(dtype: str, last: bool, training: bool) -> None:
    level = drawn(16, dtype, last, training)
    made = psi.layers_call(level)()[0]
    assert judge_layers(level, made).passed
    assert not judge_layers(level, made * 1.1).passed


class Called:
    """A graph that calls again what it captured."""

    def __init__(self, call: Callable[[], list[Tensor]]):
        self.call, self.made = call, call()

    def replay(self) -> None:
        for old, new in zip(self.made, self.call(), strict=True):
            old.copy_(new)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], tuple[int, dict[str, dict]]]:
    """The stage with two small levels, a graph that calls, and a clock that says one."""

    def captured(call: Callable[[], list[Tensor]]) -> tuple[Called, list[Tensor]]:
        graph = Called(call)
        return graph, graph.made

    monkeypatch.setattr(psi, "captured", captured)
    monkeypatch.setattr(psi, "in_turns", lambda calls, **_: {key: {"median": 1.0} for key in calls})
    monkeypatch.setattr(psi, "LEVELS", {321: ((3, 83), (16, 41))})

    def run() -> tuple[int, dict[str, dict]]:
        report = Report(tmp_path / "psi.json")
        failed = psi.measure(321, 2, "fp32", True, True, report, "cpu")
        listed = json.loads(report.path.read_text(encoding="utf-8"))["entries"]
        return failed, {entry["level"]: entry for entry in listed}

    return run


def test_what_is_right_is_timed(stage: Callable[[], tuple[int, dict[str, dict]]]) -> None:
    failed, found = stage()
    assert failed == 0 and list(found) == ["3 x 83²", "16 x 41²", "all five"]
    for entry in found.values():
        assert entry["microseconds"] == entry["layers_replayed"] == {"median": 1.0}
        assert entry["fraction_of_h200_floor"] == entry["h200_floor"]


def test_what_is_wrong_is_not(
    stage: Callable[[], tuple[int, dict[str, dict]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the whole that it is a part of."""
    both = Level.both

    def wrong(self: Level) -> list[Tensor]:
        made = both(self)
        if self.features.shape[1] == 16:
            self.grad_weight[0, 0] += 1.0
        return made

    monkeypatch.setattr(Level, "both", wrong)
    failed, found = stage()
    assert failed == 2 and "microseconds" in found["3 x 83²"]
    assert "grad_weight is wrong" in found["16 x 41²"]["reason"] and "one of them failed" in found["all five"]["reason"]
    assert not any("microseconds" in entry or "layers" in entry for entry in list(found.values())[1:])


def test_a_graph_that_does_something_else_gets_no_time(
    stage: Callable[[], tuple[int, dict[str, dict]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Called, "replay", lambda self: self.made[0].add_(1.0))
    failed, found = stage()
    assert failed == 3 and "not those of the calls" in found["3 x 83²"]["reason"]
    assert not any("microseconds" in entry for entry in found.values())


def test_layers_that_are_wrong_get_no_time(
    stage: Callable[[], tuple[int, dict[str, dict]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = psi.layers_call
    monkeypatch.setattr(psi, "layers_call", lambda level: lambda: [x * 2 for x in real(level)()])
    failed, found = stage()
    assert failed == 0 and all("microseconds" in entry and "layers" not in entry for entry in found.values())
    assert all("pooled field of the layers" in entry["layers_reason"] for entry in found.values())


def test_what_the_stage_measures_is_what_the_documents_read(
    stage: Callable[[], tuple[int, dict[str, dict]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "describe", lambda device: {"device": "NVIDIA H200"})
    (tmp_path / predicted.PSI).write_bytes((FOLDER / predicted.PSI).read_bytes())
    report = Report(tmp_path / "psi.json")
    assert psi.measure(321, 2, "fp32", True, False, report, "cpu") == 0
    lines = [line for line in predicted.psi(tmp_path).splitlines() if "all five" in line and "321²" in line]
    assert {line.split("|")[3].strip(): line.split("|")[-2].strip() for line in lines} == {
        "fp32": "1.0",
        "bf16": "not measured",
    }
