"""Every question as tests, one for each task and contender."""

from __future__ import annotations

import pytest

from benchmarks.device import here
from benchmarks.questions import all_tasks
from benchmarks.tasks import Task

ASKED = [(task, contender) for task in all_tasks(here() == "cuda") for contender in task.contenders]


@pytest.mark.parametrize(("task", "contender"), ASKED, ids=[f"{task}-{contender}" for task, contender in ASKED])
def test_question(task: Task, contender: str, play) -> None:
    play(task, contender)
