"""A wrong, failing or uncapturable contender gets no time; the others take turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.cascade import CascadeTask
from benchmarks.cases import Case
from benchmarks.clock import Timing, alternate
from benchmarks.device import Rehearsal, device
from benchmarks.peers import Contender
from benchmarks.questions import overhead
from benchmarks.tasks import FAILED, IMPRECISE, MEASURED, UNAVAILABLE, Entrant, Row, contest
from benchmarks.truth import Verdict

SMALL = Case("small", 2, 30, 8, 5, walks=2)
TASK = replace(overhead(False)[0], seconds=0.01)


def test_a_wrong_or_failing_contender_gets_no_time():
    def broken():
        raise RuntimeError("no such kernel\nlong story")

    entrants = {
        "ours": Entrant("ours", None, lambda: (lambda: None, Verdict(1.0, 0.1, "output"))),
        "dense": Entrant("dense", None, broken),
        "sdpa": Entrant("sdpa", "not here", broken),
    }
    rows = {row.contender: row for row in contest(TASK, entrants, device("cpu"))}
    assert rows["ours"].status == FAILED and "exceeds" in rows["ours"].reason
    assert rows["dense"].reason == "RuntimeError: no such kernel"
    assert rows["sdpa"].reason == "not here"
    assert all(row.median is None for row in rows.values())


@pytest.mark.parametrize(
    ("error", "status"), [(0.05, MEASURED), (1.0, IMPRECISE), (2.1, FAILED), (float("nan"), FAILED)]
)
def test_a_card_times_what_is_imprecise_and_marks_it(error: float, status: str):
    entrant = Entrant("ours", None, lambda: (lambda: None, Verdict(error, 0.1, "output")))
    (row,) = contest(TASK, {"ours": entrant}, Rehearsal())
    assert row.status == status
    assert (row.median is not None) == (status != FAILED)
    assert ("exceeds" in row.reason) == (status != MEASURED)


def test_contenders_take_turns():
    order: list[str] = []
    timings = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=1, rounds=(4, 4))
    assert "".join(order) == "abbaabba"
    assert len(timings["a"].samples) == 4


def test_quantiles():
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (timing.quantile(0.2), timing.median, timing.quantile(0.8)) == pytest.approx((1.8, 3.0, 4.2))
    assert Timing((2.0,)).quantile(0.8) == 2.0


class Card(Rehearsal):
    """A rehearsal whose graphs do what they are told to."""

    def __init__(self, captured: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        if captured is not None:
            self.captured = captured  # type: ignore[method-assign]


def replayed(direction: str, *contenders: str, on: Rehearsal, repeats: int = 1) -> dict[str, Row]:
    task = CascadeTask("replay", SMALL, direction, contenders=contenders, seconds=0.01, repeats=repeats, replayed=True)
    return {row.contender: row for row in task.measure(on)}


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_everybody_is_replayed(direction: str):
    rows = replayed(direction, "ours", "dense", on=Card())
    assert rows["ours"].status == rows["dense"].status == MEASURED and rows["dense"].median


def test_a_time_is_that_of_one_replay():
    replays: list[int] = []
    card = Card()
    real = card.captured

    def captured(call: Callable[[], Any]) -> Any:
        replay, made = real(call)
        return lambda: (replays.append(1), replay())[1], made

    (row,) = replayed("forward", "ours", on=Card(captured), repeats=7).values()
    assert len(replays) == 1 + 7 * row.rounds


def test_who_cannot_be_captured_says_why():
    """A peer may; ours may not."""

    def captured(call: Callable[[], Any]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    rows = replayed("forward", "ours", "dense", on=Card(captured))
    assert (rows["ours"].status, rows["dense"].status) == (FAILED, UNAVAILABLE)
    assert all("not permitted" in row.reason and row.median is None for row in rows.values())


@pytest.mark.parametrize("name", ["ours", "dense"])
def test_a_replay_that_writes_nothing_gets_no_time(name: str):
    row = replayed("forward", name, on=Card(lambda call: (lambda: None, call())))[name]
    assert row.status == FAILED and row.median is None


def test_ours_replays_the_same_bits_where_a_peer_may_round():
    def captured(call: Callable[[], Any]) -> Any:
        made = call()

        def replay() -> None:
            made[0].copy_(torch.nextafter(call()[0], torch.tensor(9.0)))

        return replay, made

    rows = replayed("forward", "ours", "dense", on=Card(captured))
    assert rows["ours"].status == FAILED and "other bits" in rows["ours"].reason
    assert rows["dense"].status == MEASURED


def test_who_is_wrong_is_not_even_captured(monkeypatch: pytest.MonkeyPatch):
    wrong = Contender("dense", "dense, eager", lambda _: None, lambda _: lambda seed, psi, mu, beta: -seed)
    monkeypatch.setitem(peers.CONTENDERS, "dense", wrong)
    row = replayed("forward", "dense", on=Card(lambda call: pytest.fail("captured")))["dense"]
    assert row.status == FAILED and "exceeds" in row.reason
