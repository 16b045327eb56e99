"""Which backend can run what, and why not: capability as data, read by the choice, the errors and the tests.

A backend is a module with
    unusable() -> str | None                    why it cannot run on this machine at all
    refuses(problem) -> str | None              why it cannot run this cascade
    cascade_forward, cascade_backward
    refuses_projection(problem) -> str | None   why it cannot run this Ψ
    projection_forward, projection_backward
"""

from __future__ import annotations

from types import ModuleType

from difnet_kernels.backends import cpu, reference, triton
from difnet_kernels.problem import Problem, Projection

# in order of preference; the dense reference is the last resort because it stores N x N
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "triton": triton, "reference": reference}


class BackendUnavailable(RuntimeError):
    """No backend, or not the named one, can run the problem; the message gives the reason of each."""


def why_not(name: str, problem: Problem | Projection) -> str | None:
    """The reason that backend `name` cannot run `problem`, or None if it can."""
    backend = BACKENDS[name]
    refuses = backend.refuses_projection if isinstance(problem, Projection) else backend.refuses
    return backend.unusable() or refuses(problem)


def check_name(name: str | None) -> None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {tuple(BACKENDS)}; got {name!r}.")


def choose(name: str, problem: Problem | Projection) -> ModuleType:
    """The backend called `name`, or for "" the first that can run `problem`. A named one never falls back."""
    reasons = {}
    for candidate in [name] if name else BACKENDS:
        reason = why_not(candidate, problem)
        if reason is None:
            return BACKENDS[candidate]
        reasons[candidate] = reason
    told = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
    usable = [other for other in BACKENDS if why_not(other, problem) is None]
    advice = f" Usable here: {usable}." if usable else ""
    raise BackendUnavailable(f"no backend can run this problem ({told}).{advice} See `python -m difnet_kernels info`.")
