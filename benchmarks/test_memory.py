"""How much a process grows during a cascade, and during Ψ."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), [*contenders_of("memory"), *contenders_of("psi_memory")])
def test_memory(task: Task, contender: str, play) -> None:
    play(task, contender)
