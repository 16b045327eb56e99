"""Derivatives in fp64: gradcheck through every backend as it is compiled, and no silently wrong second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, diffuse, psi_projection, random_walk, transition_rows
from tests.support.cases import Case, make, normal
from tests.support.tolerances import GRADCHECK

# central differences say something only in fp64; a backend without it is compared with fp64 in tests/test_backward.py
IN_FP64 = pytest.mark.needs(dtype="fp64")

# (N, D, K, T): odd sizes, one of each, ties of D and K with lane counts
SIZES = (
    (1, 1, 1, 1),
    (2, 1, 2, 2),
    (3, 2, 1, 3),
    (5, 3, 2, 2),
    (7, 4, 3, 1),
    (9, 2, 2, 2),
    (17, 1, 1, 1),
    (4, 16, 3, 1),
)


def _leaves(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    inputs = make(case, dtype)
    return [x.requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]


def _cascade(backend: str, steps: bool = False) -> Callable[..., Tensor]:
    def run(seed: Tensor, *rest: Tensor) -> Tensor:
        *psi, mu, beta = rest
        return cascaded_random_walk(seed, psi, mu, beta, backend=backend, return_steps=steps)  # type: ignore[return-value]

    return run


@IN_FP64
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("regime", [pytest.param("smooth", marks=pytest.mark.smoke), "equal"])
def test_gradcheck(backend: str, regime: str, size: tuple[int, int, int, int]) -> None:
    nodes, embed, classes, walks = size
    leaves = _leaves(Case(2 if nodes < 9 else 1, (nodes,), embed, classes, walks, regime))
    if (
        regime == "equal"
    ):  # ties everywhere; norm² 150 would leave more truncation in the differences than gradcheck allows
        leaves = [(x.detach() / 8).requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(_cascade(backend), leaves, **GRADCHECK)


@IN_FP64
@pytest.mark.smoke
@pytest.mark.parametrize("nodes", [31, 33, 63, 64, 65, 130])
def test_gradcheck_across_tiles(backend: str, nodes: int) -> None:
    """Along random directions, which is what larger problems can afford."""
    leaves = _leaves(Case(1, (nodes,), 6, 3, 2, "smooth"))
    assert torch.autograd.gradcheck(_cascade(backend), leaves, fast_mode=True, **GRADCHECK)


@IN_FP64
def test_gradcheck_where_the_maximum_moves(backend: str) -> None:
    """Norms that grow along the nodes, so that rows are rescaled; small enough for central differences."""
    leaves = _leaves(Case(1, (70,), 3, 2, 1, "brightening"))
    leaves[1] = (leaves[1].detach() * 0.4).requires_grad_()
    assert torch.autograd.gradcheck(_cascade(backend), leaves, fast_mode=True, **GRADCHECK)


@IN_FP64
def test_gradcheck_of_all_steps(backend: str) -> None:
    assert torch.autograd.gradcheck(
        _cascade(backend, steps=True), _leaves(Case(1, (5,), 2, 2, 3, "smooth")), **GRADCHECK
    )


@IN_FP64
def test_gradcheck_of_strided_inputs(backend: str) -> None:
    seed, psi, mu, beta = _leaves(Case(2, (3, 4), 3, 2, 1, "smooth"))

    def strided(seed: Tensor, psi: Tensor) -> Tensor:
        y = cascaded_random_walk(seed.transpose(2, 3), [psi.transpose(2, 3)], mu, beta, backend=backend)
        assert isinstance(y, Tensor)
        return y.transpose(2, 3)

    assert torch.autograd.gradcheck(strided, (seed, psi), **GRADCHECK)


@IN_FP64
@pytest.mark.parametrize("nodes", [4, 9])
def test_gradcheck_of_one_walk(backend: str, nodes: int) -> None:
    seed, psi, mu, beta = _leaves(Case(2, (nodes,), 3, 2, 1, "smooth"))
    state = make(Case(2, (nodes,), 3, 2, 1, "smooth"), torch.float64, 1).seed.requires_grad_()

    def run(*arguments: Tensor) -> Tensor:
        return random_walk(*arguments, backend=backend)

    assert torch.autograd.gradcheck(run, (state, psi, seed, mu[0], beta), **GRADCHECK)


def test_gradcheck_of_transition_rows() -> None:
    """Rows are plain torch, and so differentiable any number of times."""
    psi = make(Case(2, (3, 3), 3, 1, 1, "smooth"), torch.float64).psi[0].requires_grad_()
    nodes = torch.tensor([[0, 4], [8, 8]])
    assert torch.autograd.gradcheck(lambda p: transition_rows(p, nodes), psi, **GRADCHECK)
    assert torch.autograd.gradgradcheck(lambda p: transition_rows(p, nodes), psi, atol=1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("wanted", ["seed", "psi", "mu", "beta"])
def test_a_second_derivative_is_refused(backend: str, wanted: str) -> None:
    """Never silently wrong: the first derivative with create_graph equals the plain one, the second raises."""
    seed, psi, mu, beta = leaves = _leaves(Case(2, (9,), 3, 2, 1, "smooth"), torch.float32)
    leaf = {"seed": seed, "psi": psi, "mu": mu, "beta": beta}[wanted]
    plain = torch.autograd.grad(_cascade(backend)(*leaves).square().sum(), leaf)[0]
    kept = torch.autograd.grad(_cascade(backend)(*leaves).square().sum(), leaf, create_graph=True)[0]
    assert torch.equal(kept, plain)
    with pytest.raises(NotImplementedError, match=r"differentiable once.*reference"):
        torch.autograd.grad(kept.square().sum(), leaf)


FORWARD_MODE: dict[str, Callable[[Tensor, str], Any]] = {
    "seed": lambda x, name: cascaded_random_walk(x, [x.cos()], [0.5], [0.5], backend=name),
    "psi": lambda x, name: cascaded_random_walk(x.detach(), [x.detach(), x], [0.5] * 2, [0.5] * 2, backend=name),
    "bias": lambda x, name: random_walk(x.detach(), x.detach(), x.detach(), 0.5, 0.5, bias=x[:, 0], backend=name),
    "steady state": lambda x, name: diffuse(x, x.detach(), 0.5, backend=name),
    "projection": lambda x, name: psi_projection(x, x[0, :, :2].mT, None, None, (3,), backend=name),
}


@pytest.mark.smoke
@pytest.mark.needs(bias=True)
@pytest.mark.parametrize("call", FORWARD_MODE)
def test_forward_mode_is_refused_where_nothing_requires_a_gradient(backend: str, call: str) -> None:
    """Autograd sees no input to differentiate there, and the tangent would be lost: the derivative zero, silently."""
    x = normal(0, 1, 2, 5)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        FORWARD_MODE[call](torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), backend)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda x: FORWARD_MODE[call](x, backend), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():  # of something else
        assert isinstance(FORWARD_MODE[call](x, backend), Tensor)


@pytest.mark.parametrize("transform", ["forward mode", "torch.func.grad", "torch.func.vmap"])
def test_other_ways_to_differentiate_are_refused(backend: str, transform: str) -> None:
    """Not offered, so they must raise."""
    seed, psi, mu, beta = _leaves(Case(1, (5,), 3, 2, 1, "smooth"), torch.float32)

    def loss(x: Tensor) -> Tensor:
        return _cascade(backend)(x, psi, mu, beta).sum()

    if transform == "forward mode":
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
            loss(torch.autograd.forward_ad.make_dual(seed, torch.ones_like(seed)))
    elif transform == "torch.func.grad":
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(loss)(seed.detach())
    else:
        with pytest.raises(RuntimeError, match="Batching rule not implemented"), torch.no_grad():
            torch.func.vmap(loss)(seed.detach().unsqueeze(0))


def test_saved_tensors_changed_in_place_are_noticed(backend: str) -> None:
    """The backward reads psi again; a psi that was changed meanwhile must not give a gradient of something else."""
    inputs = make(Case(1, (9,), 3, 2, 1, "smooth"))
    psi = inputs.psi[0].clone()
    seed = inputs.seed.clone().requires_grad_()
    y = cascaded_random_walk(seed, [psi], inputs.mu, inputs.beta, backend=backend)
    assert isinstance(y, Tensor)
    psi.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_gradients_are_freed_after_one_backward(backend: str) -> None:
    seed, *rest = _leaves(Case(1, (9,), 3, 2, 1, "smooth"), torch.float32)
    y = _cascade(backend)(seed, *rest)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_retain_graph_gives_the_same_again(backend: str) -> None:
    leaves = _leaves(Case(2, (9,), 3, 2, 2, "smooth"), torch.float32)
    y = _cascade(backend)(*leaves).square().sum()
    first = torch.autograd.grad(y, leaves, retain_graph=True)
    second = torch.autograd.grad(y, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_accumulate(backend: str) -> None:
    leaves = _leaves(Case(2, (9,), 3, 2, 2, "smooth"), torch.float32)
    for _ in range(2):
        _cascade(backend)(*leaves).sum().backward()
    once = torch.autograd.grad(_cascade(backend)(*leaves).sum(), leaves)
    assert all(torch.equal(leaf.grad, 2 * g) for leaf, g in zip(leaves, once, strict=True))
