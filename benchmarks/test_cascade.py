"""The paper's cascades of five walks, beside every peer."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("cascade"))
def test_cascade(task: Task, contender: str, play) -> None:
    play(task, contender)
