"""C++ kernels for the CPU (csrc/cpu)."""

from __future__ import annotations

from difnet_kernels.problem import Problem


def unusable() -> str | None:
    return "the compiled library is missing"


def refuses(problem: Problem) -> str | None:
    return None
