"""Time against N, K, D, T and B."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("scaling"))
def test_scaling(task: Task, contender: str, play) -> None:
    play(task, contender)
