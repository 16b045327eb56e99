"""The tasks of a question as arguments of a test: one test per task and contender."""

from __future__ import annotations

import torch
from pytest import param

from benchmarks.questions import QUESTIONS


def contenders_of(question: str) -> list[object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        param(task, contender, id=f"{task}-{contender}")
        for task in QUESTIONS[question](device)
        for contender in task.contenders
    ]
