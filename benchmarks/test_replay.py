"""The small cascades by graph replay, beside the peers. A CPU has no graphs, and nothing to collect here."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task

if REPLAYED := contenders_of("replay"):

    @pytest.mark.parametrize(("task", "contender"), REPLAYED)
    def test_replay(task: Task, contender: str, play) -> None:
        play(task, contender)
