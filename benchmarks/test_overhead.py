"""The cost of a call that has almost nothing to do."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("overhead"))
def test_overhead(task: Task, contender: str, play) -> None:
    play(task, contender)
