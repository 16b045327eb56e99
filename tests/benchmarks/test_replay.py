"""Graph replay without a GPU: who is wrong, cannot be captured or replays something else gets no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import peers, replay
from benchmarks.cases import Case
from benchmarks.peers import Contender
from benchmarks.replay import ReplayTask
from benchmarks.tasks import FAILED, MEASURED, UNAVAILABLE, Row

SMALL = Case("small", 2, 30, 8, 5, walks=2)


class Called:
    def __init__(self, call: Callable[[], Any]):
        self.replay = call


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "captured", lambda call: (Called(call), call()))


def measured(direction: str, *contenders: str) -> dict[str, Row]:
    task = ReplayTask("replay", SMALL, direction, contenders=contenders, seconds=0.01)
    return {row.contender: row for row in task.measure("cpu")}


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_everybody_is_replayed(direction: str) -> None:
    rows = measured(direction, "ours", "dense", "sdpa_flash")
    assert rows["ours"].status == rows["dense"].status == MEASURED and rows["dense"].median
    assert rows["sdpa_flash"].status == UNAVAILABLE and "GPU only" in rows["sdpa_flash"].reason


def test_a_time_is_that_of_one_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = []
    monkeypatch.setattr(replay, "captured", lambda call: (Called(lambda: replays.append(1)), call()))
    task = ReplayTask("replay", SMALL, contenders=("ours",), seconds=0.01, repeats=7)
    (row,) = task.measure("cpu")
    assert len(replays) == 1 + 7 * row.rounds


def test_who_cannot_be_captured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may; ours may not."""

    def captured(call: Callable[[], Any]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "captured", captured)
    rows = measured("forward", "ours", "dense")
    assert (rows["ours"].status, rows["dense"].status) == (FAILED, UNAVAILABLE)
    assert all("not permitted" in row.reason and row.median is None for row in rows.values())


@pytest.mark.parametrize("name", ["ours", "dense"])
def test_a_replay_of_something_else_gets_no_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(call: Callable[[], Any]) -> tuple[Called, Any]:
        state, grads = call()
        return Called(lambda: None), (state + 0.5, grads)

    monkeypatch.setattr(replay, "captured", captured)
    row = measured("forward", name)[name]
    assert row.status == FAILED and row.median is None


def test_ours_replays_the_same_bits_where_a_peer_may_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(call: Callable[[], Any]) -> tuple[Called, Any]:
        state, grads = call()
        return Called(lambda: None), (torch.nextafter(state, state + 1), grads)

    monkeypatch.setattr(replay, "captured", captured)
    rows = measured("forward", "ours", "dense")
    assert rows["ours"].status == FAILED and "other bits" in rows["ours"].reason
    assert rows["dense"].status == MEASURED


def test_who_is_wrong_is_not_even_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Contender("dense", "dense, eager", lambda _: None, lambda _: lambda seed, psi, mu, beta: seed)
    monkeypatch.setitem(peers.CONTENDERS, "dense", wrong)
    monkeypatch.setattr(replay, "captured", lambda call: pytest.fail("captured"))
    row = measured("forward", "dense")["dense"]
    assert row.status == FAILED and "exceeds" in row.reason
