"""Ψ and the cascade as one operator: where it fits and where there are two, in graphs, and what it says to bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from difnet_kernels.backends import BACKENDS, BackendUnavailable
from difnet_kernels.onnx import onnx_decompositions
from tests.cuda import host_backend
from tests.cuda.projected import NAME, OPS, Sizes, assert_right, inputs_of, named, truth, walk_of  # noqa: F401  (named is a fixture)
from tests.support.cases import normal
from tests.support.truth import assert_same

# ---- one operator or two ----------------------------------------------------------------------------------------------


def operators(run: Callable[[], object]) -> list[str]:
    """The operators of the package that a call runs, from outside in."""
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.namespace == "difnet_kernels":
                names.append(operator._opname)
            return operator(*args, **(kwargs or {}))

    with Names():
        run()
    return names


ONE, TWO = ["projected_cascade"], [*["projection_forward"] * 3, "cascade_forward"]


def test_one_operator_without_gradients() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == ONE
    walk.requires_grad_(False)
    assert operators(lambda: walk(seed, features)) == ONE


def _hooked(walk: Any) -> None:
    walk.psi[0].register_forward_hook(lambda module, inputs, output: output)


NOT_FITTING: dict[str, tuple[Callable[[Any], object], int]] = {
    "in training": (lambda walk: walk.train(), 3),
    "no running statistics": (lambda walk: setattr(walk.psi[1].norm, "running_mean", None), 3),
    "gaussian": (lambda walk: setattr(walk, "affinity", "gaussian"), 3),
    "a hook": (_hooked, 3),
    "another module": (lambda walk: walk.psi.__setitem__(1, _Own()), 2),
    "another norm": (lambda walk: setattr(walk.psi[1], "norm", nn.GroupNorm(4, 16)), 2),
}


class _Own(nn.Module):
    def forward(self, x: Tensor, grid: tuple[int, ...], *, backend: str | None = None) -> Tensor:
        return nn.functional.adaptive_max_pool2d(x, grid)[:, :16]


@pytest.fixture
def with_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the cascade beside the Ψ of the reference."""
    other = BACKENDS["reference"]
    monkeypatch.setitem(
        BACKENDS,
        NAME,
        replace(
            host_backend.BACKEND,
            refuses_projection=other.refuses_projection,
            projection_forward=other.projection_forward,
            projection_backward=other.projection_backward,
        ),
    )


@pytest.mark.usefixtures("with_projection")
@pytest.mark.parametrize("change", NOT_FITTING)
def test_what_does_not_fit_takes_two(change: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    act, projections = NOT_FITTING[change]
    act(walk)
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == [*["projection_forward"] * projections, "cascade_forward"]


@pytest.mark.usefixtures("with_projection")
def test_gradients_take_two() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    assert operators(lambda: walk(seed, features)) == TWO
    walk.requires_grad_(False)
    assert operators(lambda: walk(seed.requires_grad_(), features)) == TWO


@pytest.mark.usefixtures("with_projection")
@pytest.mark.parametrize(
    "sizes",
    [(1, 2, (3, 4), 65, ((3, (5, 5)),)), (1, 2, (3,), 4, ((3, (5,)),) * 13), (1, 2, (3,), 4, ((2049, (5,)),))],
)
def test_what_is_too_wide_takes_two(sizes: Sizes) -> None:
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == [*["projection_forward"] * len(features), "cascade_forward"]


def test_a_backend_without_it_takes_two() -> None:
    walk, (seed, features) = walk_of(backend="reference"), inputs_of()
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == TWO


def test_the_operator_has_no_gradient() -> None:
    seed, features = inputs_of((1, 2, (3,), 4, ((3, (5,)),)))
    given = _arguments(seed.requires_grad_(), features)
    (y,) = OPS.projected_cascade(*given)
    with pytest.raises(NotImplementedError, match="projected_cascade is for inference"):
        y.sum().backward()


def _arguments(seed: Tensor, features: list[Tensor], embed: int = 4) -> tuple[Any, ...]:
    volumes = [x.view(*x.shape[:2], *(1,) * (5 - x.dim()), *x.shape[2:]) for x in features]
    weight = [normal(t, embed, x.shape[1]) for t, x in enumerate(features)]
    vectors = [[normal(10 * n + t, embed).abs() + 0.5 for t in range(len(features))] for n in range(5)]
    gates = torch.full((len(features),), 0.5)
    return seed, volumes, weight, *vectors, [1e-5] * len(features), 0.5, gates, gates, None, "high", NAME, True


def test_opcheck() -> None:
    library.opcheck(OPS.projected_cascade, _arguments(*inputs_of()))


def test_it_counts_what_the_two_count() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    counts = []
    for backend in (NAME, "reference"):
        walk.backend = backend
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            walk(seed, features)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_another_backend_says_that_it_lacks_it() -> None:
    seed, features = inputs_of()
    *given, _, _ = _arguments(seed, features)
    with pytest.raises(BackendUnavailable, match="does not bring Ψ and the cascade in one launch"):
        OPS.projected_cascade(*given, "reference", True)


@pytest.fixture
def compiler() -> Iterator[list[str]]:
    """The operators of the graphs that are compiled while it is in use."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def _nodes(graph: torch.fx.GraphModule) -> list[str]:
    return [
        node.target._opname for node in graph.graph.nodes if getattr(node.target, "namespace", "") == "difnet_kernels"
    ]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_keeps_one_node(compiler: list[str], dynamic: bool) -> None:
    walk, (seed, features) = walk_of(residual=True), inputs_of()

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiler.extend(_nodes(graph))
        return graph

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = torch.compile(walk, fullgraph=True, dynamic=dynamic, backend=count)(seed, features)
        assert_same([ours], [walk(seed, features)])
    assert compiler == ONE


def test_an_exported_program_keeps_one_node(compiler: list[str]) -> None:
    """Under torch.no_grad(). Without it a program may be trained later, and keeps the two that have gradients."""
    walk, (seed, features) = walk_of(), inputs_of()
    with torch.no_grad():
        program = torch.export.export(walk, (seed, features))
        assert_same([program.module()(seed, features)], [walk(seed, features)])
    assert _nodes(program.graph_module) == ONE
    plain = program.run_decompositions(onnx_decompositions())
    assert _nodes(plain.graph_module) == []
    true, logit = truth(walk, seed, features)
    assert_right((plain.module()(seed, features),), true[-1:], len(true) * logit, {torch.float32})


# ---- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, Callable[[Tensor, list[Tensor]], tuple[Any, ...]]] = {
    "a channel less": lambda seed, x: (seed, [x[0], x[1][:, 1:], x[2]]),
    "another batch": lambda seed, x: (seed, [x[0], x[1][:1], x[2]]),
    "an axis less": lambda seed, x: (seed, [x[0], x[1].flatten(2), x[2]]),
    "integers": lambda seed, x: (seed, [x[0].long(), *x[1:]]),
    "no class": lambda seed, x: (seed[:, :0], x),
    "a map less": lambda seed, x: (seed, x[:2]),
    "a mask of numbers": lambda seed, x: (seed, x, torch.ones(2, 7, 9)),
    "a mask of another grid": lambda seed, x: (seed, x, torch.ones(2, 9, 7, dtype=torch.bool)),
    "no pixel": lambda seed, x: (seed, [x[0][:, :, :0], *x[1:]]),
}


@torch.no_grad()
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_says_what_the_two_say(bad: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    given = BAD[bad](seed, features)
    told = []
    for backend in (NAME, "reference"):
        walk.backend = backend
        with pytest.raises((TypeError, ValueError)) as raised:
            walk(*given)
        told.append((type(raised.value), str(raised.value)))
    assert told[0] == told[1]
