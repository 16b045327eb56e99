"""Ψ: projection, normalisation and pooling."""

from __future__ import annotations

import pytest

from benchmarks.parametrize import contenders_of
from benchmarks.tasks import Task


@pytest.mark.parametrize(("task", "contender"), contenders_of("psi"))
def test_psi(task: Task, contender: str, play) -> None:
    play(task, contender)
