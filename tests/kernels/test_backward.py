"""Every backend differentiates the cascade: the gradients of psi, seed, mu and beta against fp64 (B1-B7)."""

from __future__ import annotations

import pytest
import torch

from difnet_kernels import cascaded_random_walk, random_walk
from tests.support.cases import DTYPES, PAPER, REGIME_CASES, SHAPES, Case, Inputs, make, normal
from tests.support.tolerances import NEARLY_ONE_HOT, PSI_GRADIENT, SEED_GRADIENT, assert_within
from tests.support.truth import assert_gradients, both, known, setting, truth_of

SMOKE_NODES = (1, 7, 33, 64, 65, 129)
pytestmark = pytest.mark.usefixtures("poisoned")


def _grid() -> list[object]:
    rows = []
    for case in (*SHAPES, *REGIME_CASES):
        for dtype in DTYPES:
            if case.nodes > 257 and dtype in ("fp64", "fp16"):
                continue
            if case in REGIME_CASES and case.nodes == 33 and dtype == "fp64":
                continue
            quick = case.nodes in (SMOKE_NODES if case in SHAPES else (127,))
            quick = quick and (dtype == "fp32" or (dtype == "bf16" and case.nodes == 65))
            rows.append(pytest.param(case, dtype, id=f"{case}-{dtype}", marks=[pytest.mark.smoke] * quick))
    return rows


@pytest.mark.parametrize(("case", "dtype"), _grid())
def test_all_gradients_are_right(backend: str, case: Case, dtype: str) -> None:
    inputs, truth = known(case, DTYPES[dtype])
    assert_gradients(both(inputs, backend), inputs, truth)


@pytest.mark.parametrize("case", SHAPES[11:20:4], ids=str)
def test_medium_precision_keeps_its_own_bound(backend: str, case: Case) -> None:
    inputs, truth = known(case, torch.float32)
    assert_gradients(both(inputs, backend, "medium"), inputs, truth, "medium")


@pytest.mark.parametrize("seed_dtype", DTYPES)
@pytest.mark.parametrize("psi_dtype", DTYPES)
def test_gradients_have_the_dtype_of_their_input(backend: str, seed_dtype: str, psi_dtype: str) -> None:
    wide = make(Case(2, (35,), 16, 5, 2, "smooth"), torch.float64)
    inputs = Inputs(
        wide.seed.to(DTYPES[seed_dtype]),
        [p.to(DTYPES[psi_dtype]) for p in wide.psi],
        wide.mu.float(),
        wide.beta.float(),
        wide.grad.to(DTYPES[seed_dtype]),
    )
    result = both(inputs, backend)
    assert [x.dtype for x in result.tensors()] == [
        *[DTYPES[seed_dtype]] * 2,
        *[DTYPES[psi_dtype]] * 2,
        torch.float32,
        torch.float32,
    ]
    assert_gradients(result, inputs, truth_of(inputs))


@pytest.mark.smoke
def test_the_problem_of_the_paper(backend: str) -> None:
    inputs, truth = known(PAPER["train321_one"], torch.float32)
    assert_gradients(both(inputs, backend), inputs, truth)


@pytest.mark.parametrize("wanted", range(5), ids=["seed", "psi0", "psi1", "mu", "beta"])
def test_a_single_gradient_is_the_same_as_among_all(backend: str, wanted: int) -> None:
    """Asking for one gradient only must not change it, nor touch what was not asked for."""
    inputs = make(Case(2, (65,), 16, 5, 2, "smooth"))
    everything = both(inputs, backend).tensors()[1:]
    leaves = [x.clone() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    leaves[wanted].requires_grad_()
    seed, first, second, mu, beta = leaves
    y = cascaded_random_walk(seed, [first, second], mu, beta, backend=backend)
    y.backward(inputs.grad)
    assert torch.equal(leaves[wanted].grad, everything[wanted])
    assert all(leaf.grad is None for number, leaf in enumerate(leaves) if number != wanted)


def test_gradients_of_every_step_add_up(backend: str) -> None:
    """With return_steps each step may enter the loss; the gradients are those of the sum of losses."""
    inputs = make(Case(2, (34,), 8, 3, 3, "smooth"))
    weights = [normal(t, *inputs.seed.shape) for t in range(len(inputs.psi))]

    def gradients(kind: torch.dtype, name: str) -> list[torch.Tensor]:
        at = inputs.to(kind)
        leaves = [x.clone().requires_grad_() for x in (at.seed, *at.psi, at.mu, at.beta)]
        seed, *psi, mu, beta = leaves
        steps = cascaded_random_walk(seed, psi, mu, beta, backend=name, return_steps=True)
        loss = sum((step * w.to(kind)).sum() for step, w in zip(steps, weights, strict=True))
        return list(torch.autograd.grad(loss, leaves))

    ours, true = gradients(torch.float32, backend), gradients(torch.float64, "reference")
    bound = setting(inputs).walk
    factors = [SEED_GRADIENT, *[PSI_GRADIENT] * 3, 100, 100]
    for name, a, b, factor in zip(("seed", "psi0", "psi1", "psi2", "mu", "beta"), ours, true, factors, strict=True):
        assert_within(name, a, b, factor * bound)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_only_one_step_enters_the_loss(backend: str, used: int) -> None:
    """A loss on y^t says nothing of later walks: their gradients are zero, earlier ones equal a shorter cascade's."""
    inputs = make(Case(2, (34,), 8, 3, 3, "smooth"))
    leaves = [x.clone().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    steps = cascaded_random_walk(seed, psi, mu, beta, backend=backend, return_steps=True)
    grads = torch.autograd.grad(steps[used], leaves, inputs.grad)
    for late in range(used + 1, 3):
        assert not grads[1 + late].any()
    assert not grads[-2][used + 1 :].any()
    kept = slice(0, used + 1)
    short = Inputs(inputs.seed, inputs.psi[kept], inputs.mu[kept], inputs.beta[kept], inputs.grad)
    truth = truth_of(short)
    assert_within("grad_seed", grads[0], truth.grad_seed, SEED_GRADIENT * setting(short).walk)
    for t in range(used + 1):
        assert_within(f"grad_psi[{t}]", grads[1 + t], truth.grad_psi[t], PSI_GRADIENT * setting(short).walk)


def test_one_walk_differentiates_its_state_too(backend: str) -> None:
    """random_walk has five inputs with gradients; the state and the seed are separate there (B1, B6)."""
    inputs = make(Case(2, (65,), 16, 5, 1, "smooth"))
    state = normal(2, *inputs.seed.shape)

    def gradients(kind: torch.dtype, name: str) -> list[torch.Tensor]:
        at = inputs.to(kind)
        leaves = [x.clone().requires_grad_() for x in (state.to(kind), at.psi[0], at.seed, at.mu[0], at.beta[0])]
        y = random_walk(*leaves, backend=name)
        return [y.detach(), *torch.autograd.grad(y, leaves, at.grad)]

    ours, true = gradients(torch.float32, backend), gradients(torch.float64, "reference")
    bound = setting(inputs).walk
    factors = [1, SEED_GRADIENT, PSI_GRADIENT, SEED_GRADIENT, 100, 100]
    for name, a, b, factor in zip(("y", "state", "psi", "seed", "mu", "beta"), ours, true, factors, strict=True):
        assert_within(name, a, b, factor * bound)


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
@pytest.mark.parametrize("confidence", [0.9, 0.99, 0.999, 0.99999])
def test_nearly_one_hot_rows_keep_their_gradient(backend: str, confidence: float, dtype: str) -> None:
    """At P_ii = 1 - ε the gradient of psi is a difference of nearly equal numbers (B4); fp64 keeps it to 1e-9 whatever
    ε, fp32 may lose 2⁻²⁴/ε. Equal pairwise angles make every diagonal entry of P exactly the wanted confidence."""
    nodes = 40
    odds = torch.tensor(confidence / (1 - confidence) * (nodes - 1), dtype=torch.float64)
    inputs = make(Case(1, (nodes,), nodes, 3, 1), torch.float64)
    psi = torch.eye(nodes, dtype=torch.float64).unsqueeze(0) * odds.log().sqrt()
    inputs = Inputs(inputs.seed, [psi], inputs.mu, inputs.beta, inputs.grad)
    leaf = psi.clone().requires_grad_()
    P = torch.softmax(leaf.mT @ leaf, dim=-1)
    assert abs(P[0, 0, 0].item() - confidence) < 1e-9
    s = inputs.seed.mT
    # written out, because a truth that called the reference would share its mistakes
    y = inputs.beta * (inputs.mu * P @ s + (1 - inputs.mu) * s) + (1 - inputs.beta) * s
    (true,) = torch.autograd.grad(y, leaf, inputs.grad.mT)
    if dtype == "fp64":
        assert_within("fp64", both(inputs, backend).grad_psi[0], true, 1e-9)
        return
    narrow = inputs.to(torch.float32)
    rounded = truth_of(narrow).grad_psi[0]
    assert_within("fp32", both(narrow, backend).grad_psi[0], rounded, 2e-5 + NEARLY_ONE_HOT / (1 - confidence))
