"""Which backend can run what, and why not: capability as data, read by the choice, the errors, `info` and the tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import SymInt

from difnet_kernels import cascade
from difnet_kernels.backends import cpu, cuda, reference, triton
from difnet_kernels.backends.imported import Imported
from difnet_kernels.problem import Problem, ProjectedCascade, Projection

Run = Callable[..., None]
Asked = Problem | Projection | ProjectedCascade


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend brings, as functions that fill results which `ops` has allocated; what it does not bring is None.

    unusable() -> str | None: why it cannot run on this machine at all.
    refuses(Problem), refuses_projection(Projection) -> str | None: why it cannot run this cascade or this Ψ, on the device
        that the problem names and in the directions that it asks for.
    cascade_forward, cascade_backward: a cascade, its arguments as `cascade.forward` and `cascade.backward` have them after
        the walk; those of bias and lse come only where the problem has them. A backend that brings single walks gets its
        cascade from those two.
    projection_forward, projection_backward: Ψ, arguments as in reference.py.
    projected_cascade: Ψ and the cascade in one launch, without gradients, arguments as in cuda.py.
    refuses_projected_cascade(ProjectedCascade): what that demands beyond `refuses`, of sizes and dtypes alone, because a
        compiler traces it.
    not_preferred(problem): why it is not chosen by itself where it can run; it then waits to be named.

    What forward leaves in `walked` and `row_lse` is private to the backend: its own backward reads it, and no other. `lse` is
    for the caller: natural units, of the logits as W1 and W1b have them.
    """

    name: str
    unusable: Callable[[], str | None]
    refuses: Callable[[Problem], str | None]
    refuses_projection: Callable[[Projection], str | None]
    cascade_forward: Run | None = None
    cascade_backward: Run | None = None
    projection_forward: Run | None = None
    projection_backward: Run | None = None
    projected_cascade: Run | None = None
    refuses_projected_cascade: Callable[[ProjectedCascade], str | None] = lambda problem: None
    not_preferred: Callable[[Asked], str | None] = lambda problem: None

    def why_not(self, problem: Asked) -> str | None:
        """The reason that it cannot run `problem`, or None if it can."""
        return self.unusable() or self._lacks(problem) or self._refuses(problem)

    def direction(self, name: str) -> Run:
        """The function of a direction that it brings, such as "cascade_forward"; imported now if it is `Imported`."""
        run: Run = getattr(self, name)
        return run.function if isinstance(run, Imported) else run

    def _lacks(self, problem: Asked) -> str | None:
        if isinstance(problem, ProjectedCascade):
            what, forward, backward = "Ψ and the cascade in one launch", self.projected_cascade, None
        elif isinstance(problem, Projection):
            what, forward, backward = "Ψ", self.projection_forward, self.projection_backward
        else:
            what, forward, backward = "the cascade", self.cascade_forward, self.cascade_backward
        if forward is None:
            return f"it does not bring {what}"
        if backward is None and problem.gradients:
            return f"it brings {what} without gradients; call it under torch.no_grad()"
        return None

    def _refuses(self, problem: Asked) -> str | None:
        if isinstance(problem, ProjectedCascade):
            return self.refuses(problem.cascade) or self.refuses_projected_cascade(problem)
        return self.refuses_projection(problem) if isinstance(problem, Projection) else self.refuses(problem)


# nodes up to which a call that names no backend may store N x N: 16 MiB for each image in fp32
DENSE_NODES = 2048

# in order of preference; the dense reference is the last resort because it stores N x N
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="cpu",
            unusable=cpu.unusable,
            refuses=cpu.refuses,
            refuses_projection=cpu.refuses,
            cascade_forward=partial(cascade.forward, cpu.walk_forward),
            cascade_backward=partial(cascade.backward, cpu.walk_backward),
            projection_forward=cpu.projection_forward,
            projection_backward=cpu.projection_backward,
        ),
        Backend(
            name="cuda",
            unusable=cuda.unusable,
            refuses=cuda.refuses,
            refuses_projection=cuda.refuses_projection,
            cascade_forward=cuda.cascade_forward,
            cascade_backward=cuda.cascade_backward,
            projection_forward=cuda.projection_forward,
            projection_backward=cuda.projection_backward,
            projected_cascade=cuda.projected_cascade,
            refuses_projected_cascade=cuda.refuses_projected_cascade,
            not_preferred=cuda.not_preferred,
        ),
        Backend(
            name="triton",
            unusable=triton.unusable,
            refuses=triton.refuses,
            refuses_projection=triton.refuses_projection,
            cascade_forward=triton.cascade_forward,
            cascade_backward=triton.cascade_backward,
            projection_forward=triton.projection_forward,
            projection_backward=triton.projection_backward,
        ),
        Backend(
            name="reference",
            unusable=reference.unusable,
            refuses=reference.refuses,
            refuses_projection=reference.refuses,
            cascade_forward=partial(cascade.forward, reference.walk_forward),
            cascade_backward=partial(cascade.backward, reference.walk_backward),
            projection_forward=reference.projection_forward,
            projection_backward=reference.projection_backward,
        ),
    )
}


class BackendUnavailable(RuntimeError):
    """No backend, or not the named one, can run the problem; the message gives the reason of each."""


def why_not(name: str, problem: Asked) -> str | None:
    """The reason that backend `name` cannot run `problem`, or None if it can."""
    return BACKENDS[name].why_not(problem)


def check_name(name: str | None) -> None:
    if name is not None and (not isinstance(name, str) or name not in BACKENDS):
        raise ValueError(f"backend must be None or one of {tuple(BACKENDS)}; got {name!r}.")


def choose(name: str, problem: Asked) -> Backend:
    """The backend called `name`, or for "" the first that can run `problem`. A named one never falls back, and a call that
    names none gets the dense reference only where N x N is small, with a warning.

    Pure: the same problem gives the same backend, so forward and backward of an unnamed call meet.
    """
    check_name(name or None)
    reasons: dict[str, str] = {}
    for candidate in [name] if name else BACKENDS:
        reason = why_not(candidate, problem) or ("" if name else _waits_to_be_named(candidate, problem))
        if not reason:
            if reasons and candidate == "reference" and isinstance(problem, Problem):
                _warn_once(_told(reasons))
            return BACKENDS[candidate]
        reasons[candidate] = reason
    usable = [other for other in BACKENDS if why_not(other, problem) is None]
    advice = f" Usable here by name: {usable}." if usable else ""
    raise BackendUnavailable(
        f"no backend can run this problem ({_told(reasons)}).{advice} See `python -m difnet_kernels info`."
    )


def _waits_to_be_named(name: str, problem: Asked) -> str:
    """Why a call that names no backend does not get `name`, which could run it; "" if it does."""
    return BACKENDS[name].not_preferred(problem) or _too_dense(name, problem)


def _told(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _too_dense(name: str, problem: Asked) -> str:
    """Why a call that names no backend does not get `name`; "" if it does. Ψ in the reference stores no N x N."""
    if name != "reference" or not isinstance(problem, Problem) or problem.nodes <= DENSE_NODES:
        return ""
    size = 4 * problem.batch * problem.nodes**2 / 2**30
    return (
        f"it stores N x N numbers, {size:.1f} GiB for each P of N = {problem.nodes}, and above N = {DENSE_NODES} runs only by "
        'name; mend what keeps the others from running, or pass backend="reference"'
    )


_warned: list[str] = []  # the reasons of the one warning of this process


def _warn_once(reasons: str) -> None:
    if _warned:
        return
    _warned.append(reasons)
    warnings.warn(
        f"difnet_kernels uses its dense reference, which stores N x N numbers, because no other backend can run this problem "
        f"({reasons}). Above N = {DENSE_NODES} such a call raises; `python -m difnet_kernels info` says what is missing.",
        stacklevel=2,
    )


def resolve(name: str, problem: Problem | Projection) -> str:
    """The name of the backend that ran forward, for backward to run the same: what forward leaves is private to it.

    A name costs nothing on the device and stands in a compiled graph as a constant. While a graph for many sizes is traced
    the choice would bind it to some of them; there the name stays open, and backward makes the choice that forward makes.
    """
    if isinstance(problem, Projection):
        sizes = [problem.batch, problem.nodes, problem.channels, problem.pixels]
    else:
        sizes = [problem.batch, problem.nodes, problem.classes, *problem.embeds]
    return name if any(isinstance(size, SymInt) for size in sizes) else choose(name, problem).name
