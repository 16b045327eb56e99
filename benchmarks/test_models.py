"""Table 4 of the paper: the parts of DifNet-50, and Sim-Deeplab-101."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("models"))
def test_models(task: Task, contender: str, play) -> None:
    play(task, contender)
