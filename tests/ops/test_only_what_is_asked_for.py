"""Nothing is computed, kept or compiled that nobody asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from difnet_kernels import BACKENDS, cascaded_random_walk, psi_projection, random_walk
from tests.support.cases import Case, make

CASE = Case(2, (33,), 6, 3, 3, "smooth")
NAMES = ("seed", "psi0", "psi1", "psi2", "mu", "beta")


def _walk(leaves: list[Tensor], backend: str, steps: bool = False) -> Any:
    seed, *psi, mu, beta = leaves
    return cascaded_random_walk(seed, psi, mu, beta, backend=backend, return_steps=steps)


def _leaves(wanted: tuple[bool, ...] = (True,) * 6) -> tuple[list[Tensor], Tensor]:
    inputs = make(CASE)
    fields = [inputs.seed, *inputs.psi, inputs.mu, inputs.beta]
    return [x.clone().requires_grad_(want) for x, want in zip(fields, wanted, strict=True)], inputs.grad


@pytest.mark.parametrize(
    "wanted", list(itertools.product([False, True], repeat=6))[1:], ids=lambda w: "".join("01"[x] for x in w)
)
def test_every_subset_of_gradients_is_the_same_as_among_all(backend: str, wanted: tuple[bool, ...]) -> None:
    every, upstream = _leaves()
    full = torch.autograd.grad(_walk(every, backend), every, upstream)
    some, _ = _leaves(wanted)
    _walk(some, backend).backward(upstream)
    for name, leaf, true, want in zip(NAMES, some, full, wanted, strict=True):
        assert (leaf.grad is not None) == want, name
        assert leaf.grad is None or torch.equal(leaf.grad, true), name


@pytest.mark.smoke
def test_backward_is_told_what_is_wanted(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen embedding has no gradient to fill, and walks before the first that learns are not run backwards."""
    told: dict[str, Any] = {}
    real = BACKENDS[backend].cascade_backward
    assert real is not None

    def watched(*fields: Any, **gradients: Any) -> None:
        told.update(gradients)
        real(*fields, **gradients)

    monkeypatch.setitem(BACKENDS, backend, replace(BACKENDS[backend], cascade_backward=watched))
    leaves, upstream = _leaves((False, False, False, True, False, False))
    _walk(leaves, backend).backward(upstream)
    assert [p is not None for p in told["grad_psi"]] == [False, False, True]
    assert all(told[name] is None for name in ("grad_state", "grad_seed", "grad_mu", "grad_beta"))


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires a gradient"])
def test_without_gradients_nothing_is_kept(backend: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    real = BACKENDS[backend].cascade_forward
    assert real is not None

    def watched(*fields: Any, **results: Any) -> None:
        kept.append((len(results["walked"]), len(results["row_lse"])))
        real(*fields, **results)

    monkeypatch.setitem(BACKENDS, backend, replace(BACKENDS[backend], cascade_forward=watched))
    leaves, _ = _leaves()
    plain = _walk(leaves, backend)
    if how == "no_grad":
        with torch.no_grad():
            bare = _walk(leaves, backend)
    elif how == "inference_mode":
        with torch.inference_mode():
            bare = _walk(leaves, backend)
    else:
        bare = _walk([x.detach() for x in leaves], backend)
    assert torch.equal(bare, plain)
    assert kept == [(CASE.walks, CASE.walks), (1, 1)], "memory for one walk, which the next overwrites"


@pytest.mark.smoke
def test_a_step_can_be_changed_in_place_and_kept_alone(backend: str) -> None:
    leaves, _ = _leaves()
    with torch.no_grad():
        steps = _walk(leaves, backend, steps=True)
        before = [y.clone() for y in steps]
        steps[1].mul_(2)
    assert (
        torch.equal(steps[0], before[0]) and torch.equal(steps[1], 2 * before[1]) and torch.equal(steps[2], before[2])
    )
    learning = _walk(leaves, backend, steps=True)
    learning[0].add_(1)
    learning[0].sum().backward()
    own = {y.untyped_storage().data_ptr() for y in learning}
    assert len(own) == len(learning)
    assert all(y.untyped_storage().nbytes() == y.numel() * y.element_size() for y in learning)


@pytest.mark.smoke
def test_flops_are_those_of_the_equations(backend: str) -> None:
    leaves, upstream = _leaves()
    pairs, K, D, T = CASE.batch * CASE.nodes**2, CASE.classes, CASE.embed, CASE.walks
    with FlopCounterMode(display=False) as forward:
        y = _walk(leaves, backend)
    assert forward.get_total_flops() == T * 2 * pairs * (D + K)
    with FlopCounterMode(display=False) as backward:
        y.backward(upstream)
    assert backward.get_total_flops() == T * 2 * pairs * (2 * D + 2 * K)
    frozen, _ = _leaves((True, False, False, True, False, False))
    y = _walk(frozen, backend)
    with FlopCounterMode(display=False) as backward:
        y.backward(upstream)
    assert backward.get_total_flops() == T * 2 * pairs * (D + K) + 2 * pairs * (D + K)


def test_flops_of_a_projection(backend: str) -> None:
    x, weight = torch.randn(2, 3, 6, 7).requires_grad_(), torch.randn(5, 3).requires_grad_()
    norm, product = torch.nn.BatchNorm2d(5), 2 * 2 * 42 * 3 * 5
    with FlopCounterMode(display=False) as forward:
        psi = psi_projection(x, weight, None, norm, (2, 3), backend=backend)
    assert forward.get_total_flops() == product
    with FlopCounterMode(display=False) as backward:
        psi.sum().backward()
    assert backward.get_total_flops() == 3 * product


GATED: dict[str, Callable[[Tensor, Tensor, float], Any]] = {
    "random_walk": lambda s, p, gate: random_walk(s, p, s, gate, gate),
    "cascaded_random_walk": lambda s, p, gate: cascaded_random_walk(s, [p, p], [gate, 0.5], [0.25, gate]),
}


@pytest.mark.parametrize("name", GATED)
def test_gates_as_floats_compile_once_and_not_for_every_value(name: str) -> None:
    """Twice in all, as the product of a tensor and a float: once for the first value, once for any other."""
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(GATED[name], fullgraph=True, backend="aot_eager")
    seed, psi = torch.randn(2, 3, 20), torch.randn(2, 4, 20)
    for gate in (0.1, 0.2, 0.3, 0.7, 0.9, 1.0, 0.0):
        torch.testing.assert_close(compiled(seed, psi, gate), GATED[name](seed, psi, gate))
    assert counters["stats"]["unique_graphs"] <= 3, "0 and 1 may be kept as constants"
    torch.compiler.reset()


def test_a_graph_traced_without_gradients_says_so() -> None:
    given = (
        None,
        torch.randn(1, 2, 5).requires_grad_(),
        [torch.randn(1, 3, 5)],
        torch.rand(1),
        torch.rand(1),
        "high",
        "",
    )
    (y,), *_ = torch.ops.difnet_kernels.cascade_forward(*given, False, False)
    with pytest.raises(RuntimeError, match=r"kept nothing for a backward.*Trace it again"):
        y.sum().backward()
