"""The stages of `benchmarks.gpu_suite`, as far as they can be judged without a GPU."""

from __future__ import annotations

import importlib
import sys

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import Stage


@pytest.mark.parametrize("stage", gpu_suite.STAGES, ids=lambda stage: stage.name)
def test_a_stage_takes_its_arguments(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its module can be imported here, and knows every option that the suite gives it."""
    run, module, *options = stage.command
    assert run == "-m"
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(module).main()
    told = capsys.readouterr().out
    assert all(option in told for option in options if option.startswith("--")), told


def test_the_first_stages_fit_one_call() -> None:
    """Device, correctness and ceilings, before any time runs out."""
    names = [stage.name for stage in gpu_suite.STAGES]
    needed = {"device", "rows", "correctness", "ceilings", "graphs"}
    first = gpu_suite.STAGES[: 1 + max(names.index(name) for name in needed)]
    assert sum(stage.seconds for stage in first) < 60 * gpu_suite.MINUTES - gpu_suite.LEAVE
