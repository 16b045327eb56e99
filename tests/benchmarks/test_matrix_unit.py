"""The command that measures a matrix unit runs, and what it prints can be read; here on the model of one."""

from __future__ import annotations

import re

import pytest

from benchmarks import cost, machine, matrix_unit, show
from benchmarks.cases import CASES
from difnet_kernels.backends import native
from tests.benchmarks.test_report import HEAD

pytestmark = pytest.mark.skipif(native.unusable() is not None, reason="there is no library to measure")
UNITS = [name for name in machine.UNITS if native.unusable() is None and name in native.instruction_sets()]


def test_the_command_prints_the_lines_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = "amx_model" if "amx_model" in native.instruction_sets() else "model"
    assert matrix_unit.main(["--unit", model, "--quick", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert f"{model} IS A MODEL" in told and "GFLOP/s" in told
    measured = re.findall(r"^(walk|psi) (fp32|bf16|fp16) \w+=\d+ forward(?:\+backward)? .*[\d.]+x$", told, re.M)
    assert len(measured) == 3 * 2 * (4 + 2)
    walks, projections = told.split("kUnitProjections")
    # a model is slower than anything, so every row is a comment
    for table in (walks.split("kUnitWalks")[1], projections):
        assert re.findall(r"^    // \w+, (fp32|bf16|fp16): no row, the unit loses", table, re.M) == [
            "fp32",
            "bf16",
            "fp16",
        ]


def test_a_unit_that_wins_has_a_row() -> None:
    found = {"nodes": {64: 0.7, 128: 1.2, 256: 1.5}, "classes": {1: 1.1}, "embed": {16: 0.5, 64: 0.9, 128: 2.0}}
    row = matrix_unit.line("amx", "bf16", found, "Some Xeon, 2030-01-02")
    assert (
        row
        == '    {"amx", ScalarType::BFloat16, 128, 1, 128, "Some Xeon, 2030-01-02: 1.10 to 2.00 times the vectors"},'
    )
    assert matrix_unit.bound({64: 1.5, 128: 0.5}) is None


@pytest.mark.skipif(bool(UNITS), reason="this processor has a unit")
def test_where_there_is_no_unit_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix_unit.main([]) == 1
    assert "has no matrix unit" in capsys.readouterr().out
    assert machine.unit_peak() is None


def test_the_peak_of_a_model_is_measured_like_that_of_a_unit() -> None:
    peak = machine.unit_peak("model", steps=5)
    assert peak is not None and 0 < peak["flop_per_s"] < 1e12 and "model" in peak["how"]
    assert machine.unit_peak("baseline") is None


def test_bf16_fields_are_measured_against_the_unit() -> None:
    case = CASES["eval505"].but(walks=1)
    vectors, both = cost.Machine("x", 1e11), cost.Machine("x", 1e11, unit_flop_per_s=1e12)
    unit = cost.on_unit(both)
    assert cost.on_unit(vectors) is None and unit is not None
    # 64 + 2 · 32 FLOP at the unit's rate or half an exponential of 16 FLOP at the vectors', whatever takes longer
    assert cost.pair_seconds(case, "forward", unit) == pytest.approx(max(128 / 1e12, 8 / 1e11))
    row = show.Row(show.CASCADES[0], "", "ours", "", dict(vars(case), what=""), "smooth", "bf16", "forward", median=1.0)
    assert show.efficiency(row, vectors) is None
    found = show.efficiency(row, both)
    assert found is not None and found[0] == pytest.approx(cost.dense_flop(case, "forward") / 1e12)


def test_a_results_file_tells_the_peak_of_the_unit() -> None:
    from benchmarks.results import machine_of

    assert machine_of(HEAD).unit_flop_per_s is None
    assert machine_of({**HEAD, "unit_peak": {"flop_per_s": 7e12, "how": "x"}}).unit_flop_per_s == 7e12
