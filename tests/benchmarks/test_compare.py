"""Two revisions taking turns: pairs of neighbouring times become ratios, and noise is not called a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.cases import Case
from benchmarks.compare import alternate, compared, counted, verdict
from benchmarks.counts import Unavailable
from benchmarks.worker import ROOT, Problem, Worker

PROBLEM: Problem = (Case("tiny", 1, 16, 64, 21, 1), "fp32", "forward")


class Pretender:
    """A worker with times of its own, which writes down that it was asked."""

    def __init__(self, name: str, times: list[float], asked: list[str]) -> None:
        self.name, self.samples, self.asked = name, iter(times), asked

    def seconds(self, problem: Problem, *, repeats: int = 1, times: int = 1) -> float:
        self.asked.append(f"{self.name} {repeats}")
        return 1e-3 if times == 3 else next(self.samples)


def test_the_two_take_turns_and_swap_places():
    asked: list[str] = []
    base, head = Pretender("base", [1.0] * 4, asked), Pretender("head", [1.0] * 4, asked)
    alternate(base, head, PROBLEM, 4)  # type: ignore[arg-type]
    assert asked[:2] == ["base 1", "head 1"]
    assert asked[2:] == [f"{name} 5" for name in ("base", "head", "head", "base") * 2], "of 1 ms, five at a time"


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([1.0] * 10, "same within the noise"),
        ([0.5] * 10, "faster"),
        ([2.0] * 10, "SLOWER"),
        # faster eight times out of ten is not enough
        ([0.5] * 8 + [2.0] * 2, "same within the noise"),
    ],
)
def test_a_difference_is_one_if_nearly_every_pair_shows_it(
    times: list[float], told: str, capsys: pytest.CaptureFixture[str]
):
    base, head = Pretender("base", [1.0] * 10, []), Pretender("head", times, [])
    (spread,) = compared(base, head, [PROBLEM], 10)  # type: ignore[arg-type]
    assert verdict(*spread) == told
    assert told in capsys.readouterr().out


def test_counts_are_a_ratio_or_the_reason_that_there_are_none(monkeypatch: pytest.MonkeyPatch):
    folders = Path("base"), Path("head")
    monkeypatch.setattr(compare, "instructions", lambda _, package: [4e6 if package == folders[0] else 2e6])
    assert "4.00 M -> 2.00 M, 2.000x" in counted(*folders, [PROBLEM])

    def missing(*_: object) -> list[float]:
        raise Unavailable("valgrind is not installed")

    monkeypatch.setattr(compare, "instructions", missing)
    assert counted(*folders, [PROBLEM]) == "instructions were not counted: valgrind is not installed"


def test_a_worker_times_the_package_that_it_is_given(tmp_path: Path):
    with Worker("here", ROOT) as worker:
        assert worker.about["package"].startswith(str(ROOT))
        assert 0 < worker.seconds(PROBLEM, repeats=2, times=2) < 10
    with pytest.raises(RuntimeError, match="should load the package of"):
        Worker("elsewhere", tmp_path)
