"""The choice of a backend: per problem, direction and device; what forward leaves is read by its own backward alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import BACKENDS, BackendUnavailable, backends, cascaded_random_walk, psi_projection, random_walk
from difnet_kernels.backends import DENSE_NODES, Backend, choose, why_not
from difnet_kernels.problem import Problem

SEED, PSI, GATE = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5), torch.tensor([0.5])
OPS = torch.ops.difnet_kernels
REFERENCE = BACKENDS["reference"]


def _twin(name: str, **changes: object) -> Backend:
    """A backend that computes as the reference does, under another name."""
    return replace(REFERENCE, name=name, **changes)  # type: ignore[arg-type]


def _never(*arguments: object, **results: object) -> None:
    raise AssertionError("another backend's backward was reached")


@pytest.fixture
def table() -> Iterator[dict[str, Backend]]:
    """The table of backends, to be changed by a test; afterwards it is what it was, in its order."""
    before = dict(BACKENDS)
    yield BACKENDS
    BACKENDS.clear()
    BACKENDS.update(before)


@pytest.fixture
def half(table: dict[str, Backend]) -> None:
    """The preferred backend brings forward alone."""
    others = dict(table)
    table.clear()
    table.update({"half": _twin("half", cascade_backward=None, projection_backward=None), **others})


def _walk(backend: str | None, psi: Tensor = PSI) -> Tensor:
    y = cascaded_random_walk(SEED, [psi], GATE, GATE, backend=backend)
    assert isinstance(y, Tensor)
    return y


@pytest.mark.smoke
@pytest.mark.usefixtures("half")
def test_a_backend_may_bring_forward_alone() -> None:
    """Named, it runs where no gradient is asked for."""
    assert torch.equal(_walk("half"), _walk("reference"))
    with torch.no_grad():
        assert torch.equal(_walk("half", PSI.clone().requires_grad_()), _walk("reference"))
    weight = torch.randn(4, 3)
    ours, theirs = (psi_projection(SEED, weight, None, None, (2, 2), backend=name) for name in ("half", "reference"))
    assert torch.equal(ours, theirs)


@pytest.mark.smoke
@pytest.mark.usefixtures("half")
def test_gradients_of_a_backend_without_them_are_refused() -> None:
    """With the reason, and with the names of those that have both directions."""
    with pytest.raises(BackendUnavailable, match=r"half: it brings the cascade without gradients.*'reference'"):
        _walk("half", PSI.clone().requires_grad_())
    with pytest.raises(BackendUnavailable, match=r"half: it brings Ψ without gradients.*'reference'"):
        psi_projection(SEED, torch.randn(4, 3).requires_grad_(), None, None, (2, 2), backend="half")


@pytest.mark.usefixtures("half")
def test_an_unnamed_call_with_gradients_passes_over_it() -> None:
    problem = Problem.of(SEED, [PSI], "high")
    assert choose("", problem).name != "half"
    assert choose("", replace(problem, gradients=False)).name == "half"
    psi = PSI.clone().requires_grad_()
    _walk(None, psi).sum().backward()
    assert psi.grad is not None


@pytest.mark.smoke
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_backward_runs_the_backend_that_ran_forward(table: dict[str, Backend], named: bool, compiled: bool) -> None:
    """Also when the choice would fall on another by then: its row_lse may be in other units."""
    one, other = _twin("one"), _twin("other")
    table.clear()
    table.update(one=one)
    psi = PSI.clone().requires_grad_()
    walk = torch.compile(_walk, backend="aot_eager", fullgraph=True) if compiled else _walk
    y = walk("one" if named else None, psi)
    (before,) = torch.autograd.grad(y.sum(), psi, retain_graph=True)
    table.clear()
    table.update(other=replace(other, cascade_backward=_never), one=one)
    (after,) = torch.autograd.grad(y.sum(), psi, retain_graph=True)
    assert torch.equal(after, before)
    table.update(other=other, one=replace(one, unusable=lambda: "its driver is gone"))
    with pytest.raises(BackendUnavailable, match=r"one: its driver is gone.*'other'"):
        torch.autograd.grad(y.sum(), psi)
    torch.compiler.reset()


def test_an_operator_refuses_a_name_that_nobody_has() -> None:
    with pytest.raises(ValueError, match=r"backend must be None or one of .*'tpu'"):
        OPS.cascade_forward(None, SEED, [PSI], GATE, GATE, "high", "tpu", False, True)


def test_every_backend_is_a_record_of_what_it_brings() -> None:
    for name, backend in BACKENDS.items():
        assert backend.name == name
        assert backend.cascade_forward is not None  # Ψ and gradients may be missing
        reason = why_not(name, Problem.of(SEED, [PSI], "high"))
        assert reason is None or reason == backend.unusable() or "cpu" in reason


def _reference_alone(table: dict[str, Backend]) -> None:
    for name in list(table):
        if name != "reference":
            table[name] = replace(table[name], unusable=lambda: "there is none here")


@pytest.fixture
def unwarned() -> Iterator[None]:
    backends._warned.clear()
    yield
    backends._warned.clear()


def _of(nodes: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    return torch.randn(1, 1, nodes), [torch.randn(1, 1, nodes)], GATE, GATE


@pytest.mark.smoke
@pytest.mark.usefixtures("unwarned")
def test_a_small_problem_may_be_dense_with_one_warning(table: dict[str, Backend]) -> None:
    _reference_alone(table)
    with pytest.warns(UserWarning, match=r"dense reference, which stores N x N.*cpu: there is none here"):
        cascaded_random_walk(*_of(DENSE_NODES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascaded_random_walk(*_of(DENSE_NODES))
        psi_projection(SEED, torch.randn(4, 3), None, None, (2, 2))


@pytest.mark.smoke
@pytest.mark.usefixtures("unwarned")
def test_a_large_problem_is_dense_only_by_name(table: dict[str, Backend]) -> None:
    _reference_alone(table)
    inputs = _of(DENSE_NODES + 1)
    with pytest.raises(
        BackendUnavailable, match=r"cpu: there is none here.*reference: it stores N x N.*by name"
    ) as told:
        cascaded_random_walk(*inputs)
    assert 'backend="reference"' in str(told.value)
    with pytest.raises(BackendUnavailable):
        random_walk(inputs[0], inputs[1][0], inputs[0], 0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascaded_random_walk(*inputs, backend="reference")


@pytest.mark.smoke
def test_the_choice_is_that_of_the_tensors_device() -> None:
    """Not of the current one: the problem says where its tensors are, and each backend looks there."""
    problem = Problem.of(SEED, [PSI], "high")
    assert why_not("cpu", replace(problem, device=torch.device("cuda", 1))) == (
        "it runs on the CPU; the tensors are on cuda:1"
        if BACKENDS["cpu"].unusable() is None
        else BACKENDS["cpu"].unusable()
    )
    assert "the tensors are on cpu" in str(BACKENDS["triton"].refuses(problem))
