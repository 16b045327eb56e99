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
