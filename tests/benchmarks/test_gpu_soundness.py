"""The checks of memory, on the CPU's reference: they pass there, and each finds the fault that it is there to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.gpu import level, ours, processes, soundness
from benchmarks.gpu.stage import Report
from difnet_kernels.backends import reference

OF_MEMORY = ("poison", "guards", "psi_poison", "psi_guards")


@pytest.fixture(autouse=True)
def on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (level, ours, soundness):
        monkeypatch.setattr(module, "BACKEND", "reference")
    monkeypatch.setattr(soundness, "DEVICE", "cpu")
    monkeypatch.setattr(soundness, "PROBLEMS", soundness.PROBLEMS[1:3])
    monkeypatch.setattr(machine, "describe", lambda device: {"device": device})


@pytest.mark.parametrize("name", OF_MEMORY)
def test_what_is_sound_passes(name: str) -> None:
    assert soundness.CHECKS[name]() is None


def reads_a_fresh_buffer(real: Callable[..., None]) -> Callable[..., None]:
    """Zeros in what torch.empty returns are luck, which NaN takes away."""

    def faulty(*arguments: Any, **outputs: Any) -> None:
        real(*arguments, **outputs)
        first = next(x for x in outputs.values() if isinstance(x, torch.Tensor))
        first += torch.empty(1).nan_to_num(nan=1.0).clamp(min=0.5) - 0.5

    return faulty


def writes_behind(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One number after the end of an output."""

    def seeded(real: Callable[..., None]) -> Callable[..., None]:
        def faulty(*arguments: Any, **outputs: Any) -> None:
            real(*arguments, **outputs)
            x = outputs[name]
            x.as_strided((1,), (1,), x.storage_offset() + x.numel()).fill_(0)

        return faulty

    return seeded


FAULTS = [
    ("poison", "cascade_forward", reads_a_fresh_buffer, "a fresh buffer was read"),
    ("psi_poison", "projection_forward", reads_a_fresh_buffer, "a fresh buffer was read"),
    ("guards", "cascade_forward", writes_behind("walked"), "overrun"),
    ("guards", "cascade_backward", writes_behind("grad_beta"), "overrun"),
    ("psi_guards", "projection_forward", writes_behind("position"), "overrun"),
    ("psi_guards", "projection_backward", writes_behind("grad_weight"), "overrun"),
]


@pytest.mark.parametrize(
    ("check", "function", "seeded", "told"), FAULTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_fault_is_found(
    check: str, function: str, seeded: Callable, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, function, seeded(getattr(reference, function)))
    with pytest.raises(AssertionError, match=told):
        soundness.CHECKS[check]()


def test_an_output_that_nobody_writes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps what an earlier call has left there, which is right by luck."""
    real, calls = reference.projection_backward, []

    def faulty(*arguments: Any, grad_weight: Any, **outputs: Any) -> None:
        calls.append(1)
        real(*arguments, grad_weight=grad_weight if len(calls) == 1 else torch.empty_like(grad_weight), **outputs)

    monkeypatch.setattr(reference, "projection_backward", faulty)
    with pytest.raises(AssertionError, match="not written"):
        soundness.psi_poison()


def test_every_check_is_a_process_and_a_missing_sanitizer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness.shutil, "which", lambda name: None)
    report = Report(tmp_path / "soundness.json")
    asked = soundness.jobs(report)
    assert [job.about["check"] for job in asked] == list(soundness.CHECKS)
    told = json.loads(report.path.read_text(encoding="utf-8"))["entries"]
    assert len(told) == len(soundness.SANITIZED) and all(entry["passed"] is None for entry in told)
    monkeypatch.setattr(soundness.shutil, "which", lambda name: f"/opt/{name}")
    last = soundness.jobs(report)[-1]
    assert last.command[0] == "/opt/compute-sanitizer" and last.environment == soundness.WITHOUT_A_CACHE


def test_a_check_that_fails_names_itself(tmp_path: Path) -> None:
    """In a real process, which is shown no GPU."""
    report = Report(tmp_path / "soundness.json", 60)
    (job,) = (job for job in soundness.jobs(report) if job.about["check"] == "poison")
    job.environment = {"CUDA_VISIBLE_DEVICES": ""}
    assert processes.verdicts(report, [job]) == 1
    assert report.entries[-1]["check"] == "poison" and not report.entries[-1]["passed"]
    assert "CUDA" in report.entries[-1]["reason"] or "NVIDIA" in report.entries[-1]["reason"]
