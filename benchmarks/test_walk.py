"""One walk, forward and forward+backward, beside the peers."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("walk"))
def test_walk(task: Task, contender: str, play) -> None:
    play(task, contender)
