"""Two revisions taking turns: pairs of neighbouring times become ratios, and noise is not called a difference."""

from __future__ import annotations

import pytest

from benchmarks import compare
from benchmarks.cases import Case
from benchmarks.compare import alternate, compared, counted, verdict
from benchmarks.counts import Unavailable

TINY = Case("tiny", 1, 16, 64, 21, 1)


class Pretender:
    """A worker with times of its own, which writes down what it was asked."""

    def __init__(self, name: str, times: list[float], asked: list[str]) -> None:
        self.name, self.times, self.asked = name, iter(times), asked

    def seconds(self, **question: object) -> float:
        self.asked.append(f"{self.name} {question['task']}")
        return 1e-3 if question["task"] == "prepare" else next(self.times)


def test_the_two_take_turns_and_swap_places():
    asked: list[str] = []
    base, head = Pretender("base", [1.0] * 4, asked), Pretender("head", [1.0] * 4, asked)
    alternate(base, head, TINY, "fp32", "forward", 4)  # type: ignore[arg-type]
    assert asked[:2] == ["base prepare", "head prepare"]
    assert [name.split()[0] for name in asked[2:]] == ["base", "head", "head", "base"] * 2


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
    (spread,) = compared(base, head, [(TINY, "fp32", "forward")], 10)  # type: ignore[arg-type]
    assert verdict(*spread) == told
    assert told in capsys.readouterr().out


def test_counts_are_a_ratio_or_the_reason_that_there_are_none(monkeypatch: pytest.MonkeyPatch):
    workers = [Pretender(name, [], []) for name in ("base", "head")]
    for worker in workers:
        worker.environment = worker.name  # type: ignore[attr-defined]
    problems = [(TINY, "fp32", "forward")]
    monkeypatch.setattr(compare, "instructions", lambda _, of: [4e6 if of == "base" else 2e6])
    assert "4.00 M -> 2.00 M, 2.000x" in counted(*workers, problems)  # type: ignore[arg-type]

    def missing(*_: object) -> list[float]:
        raise Unavailable("valgrind is not installed")

    monkeypatch.setattr(compare, "instructions", missing)
    assert counted(*workers, problems) == "instructions were not counted: valgrind is not installed"  # type: ignore[arg-type]
