"""The stages of `benchmarks.gpu_suite`, as far as they can be judged without a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable

import pytest
import torch

from benchmarks import gpu_suite, predicted
from benchmarks.cascade import problem
from benchmarks.cases import CASES
from benchmarks.gpu import psi_prediction, sweep, walk_prediction
from benchmarks.gpu_suite import Stage
from benchmarks.inputs import Inputs
from benchmarks.results import FOLDER
from benchmarks.tasks import DTYPES
from difnet_kernels.backends.triton.rows import Case
from difnet_kernels.backends.triton.walk import rows


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


SIZES = dict(DP=64, KP=32, products=1, nodes=4096)


def keys(name: str) -> set[str]:
    return set(json.loads((FOLDER / name).read_text(encoding="utf-8"))["entries"][0])


def test_a_prediction_has_what_its_table_shows() -> None:
    """One walk, forward and backward, and one level of Ψ: numbers in their order, under the names of the results files."""
    case = CASES["train321_one"]
    walks = [walk_prediction.predict(case, binary) for binary in walk_prediction.compiled(case, DTYPES["bf16"], "high")]
    assert [entry["kernel"] for entry in walks] == ["walk_forward", "walk_backward"]
    level = psi_prediction.predict(512, 41, 41, "bf16")
    assert {"case", "dtype", "precision", *walks[0]} == keys(predicted.WALK)
    assert {"side", "level", "dtype", *level} == keys(predicted.PSI)
    for entry in (*walks, level):
        assert 0 < entry["least_us"] < entry["most_us"]
        assert entry["floor_us"] <= entry["least_us"]


def test_tiles_of_a_wrong_result_get_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rows are what they were, once a candidate has been tried."""
    tiles, seen = sweep.FORWARD[0], []
    asked = problem(CASES["eval505"].but(nodes=9, embed=8, walks=1), "smooth", "fp32", "cpu")

    def calls(inputs: Inputs, precision: str) -> dict[str, Callable[[], list[torch.Tensor]]]:
        def call() -> list[torch.Tensor]:
            seen.extend(rows.select(Case(kind, 90, SIZES)) for kind in ("forward", "backward"))
            return [inputs.seed]

        return {"forward": call}

    chosen = rows.select
    monkeypatch.setattr(sweep, "calls", calls)
    monkeypatch.setattr(sweep, "microseconds", lambda call, **_: {"median": 1.0})
    with pytest.raises(RuntimeError, match="not timed: output is wrong"):
        sweep.tried(asked, "high", "forward", tiles)
    assert seen[0] == tiles and seen[1] == chosen(Case("backward", 90, SIZES))
    assert rows.select is chosen
    asked[0].seed.copy_(asked[1].state.mT.reshape(asked[0].seed.shape))
    assert sweep.tried(asked, "high", "forward", tiles) == {"microseconds": 1.0}
