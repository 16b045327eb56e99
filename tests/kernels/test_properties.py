"""Truths about the walk that need no reference to compare with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, random_walk
from difnet_kernels.backends import reference
from tests.support.cases import DTYPES, FEW, Case, Inputs, make, normal
from tests.support.tolerances import FLOOR, PSI_GRADIENT, ROW_SUM, SEED_GRADIENT, assert_within
from tests.support.truth import assert_same, both, forward, setting

pytestmark = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{dtype}", marks=[pytest.mark.smoke] * (dtype == "fp32" and number % 2))
        for number, case in enumerate(FEW)
        for dtype in ("fp32", "fp64")
    ],
)
BOTH = {name: DTYPES[name] for name in ("fp32", "fp64")}


def _gates(inputs: Inputs, mu: float, beta: float) -> Inputs:
    return replace(inputs, mu=torch.full_like(inputs.mu, mu), beta=torch.full_like(inputs.beta, beta))


def _nodes(inputs: Inputs, order: Tensor) -> Inputs:
    """The same problem with its nodes in another order."""
    grid = inputs.seed.shape[2:]

    def moved(x: Tensor) -> Tensor:
        return x.flatten(2)[..., order].reshape(*x.shape[:2], *grid)

    return replace(inputs, seed=moved(inputs.seed), psi=[moved(p) for p in inputs.psi], grad=moved(inputs.grad))


def _single(inputs: Inputs) -> Inputs:
    return replace(inputs, psi=inputs.psi[:1], mu=inputs.mu[:1], beta=inputs.beta[:1])


def test_01_a_constant_seed_stays_constant(backend: str, case: Case, dtype: str) -> None:
    """Rows of P sum to one, so a walk cannot create or destroy mass."""
    inputs = make(case, BOTH[dtype])
    seed = torch.arange(1, case.classes + 1, dtype=BOTH[dtype]).reshape(1, -1, *[1] * len(case.grid))
    seed = seed.expand_as(inputs.seed).contiguous()
    assert_within("state", forward(replace(inputs, seed=seed), backend), seed, case.walks * ROW_SUM[BOTH[dtype]])


def test_02_outputs_stay_within_the_scores_of_their_class(backend: str, case: Case, dtype: str) -> None:
    """An output is a convex combination of the seed."""
    inputs = make(case, BOTH[dtype])
    y, s = forward(inputs, backend).flatten(2), inputs.seed.flatten(2)
    room = case.walks * ROW_SUM[BOTH[dtype]] * s.abs().max()
    assert bool((y <= s.amax(-1, keepdim=True) + room).all())
    assert bool((y >= s.amin(-1, keepdim=True) - room).all())


def test_03_linear_in_the_seed(backend: str, case: Case, dtype: str) -> None:
    a, b = make(case, BOTH[dtype]), make(case, BOTH[dtype], 1)
    mixed = forward(replace(a, seed=3 * a.seed - 2 * b.seed), backend)
    apart = 3 * forward(a, backend) - 2 * forward(replace(a, seed=b.seed), backend)
    # the weights are the same on both sides, logits and all: only sums of a few scores are rounded differently
    assert_within("state", mixed, apart, 8 * case.walks * FLOOR[BOTH[dtype]])


def test_04_permuting_nodes_permutes_the_output(backend: str, case: Case, dtype: str) -> None:
    inputs = make(case, BOTH[dtype])
    order = normal(5, case.nodes).argsort()
    moved, still = both(_nodes(inputs, order), backend), both(inputs, backend)
    at = setting(inputs)
    assert_within("state", moved.state.flatten(2), still.state.flatten(2)[..., order], 2 * at.walk)
    assert_within(
        "grad_seed", moved.grad_seed.flatten(2), still.grad_seed.flatten(2)[..., order], 2 * SEED_GRADIENT * at.walk
    )


def test_05_rotating_psi_changes_nothing(backend: str, case: Case, dtype: str) -> None:
    """Only inner products enter, so rotations are free, and Σ_i (∂L/∂psi_i) psi_iᵀ is a symmetric D x D matrix."""
    inputs = make(case, torch.float64)
    turn, _ = torch.linalg.qr(normal(6, case.embed, case.embed, dtype=torch.float64))
    turned = replace(inputs, psi=[torch.einsum("de,be...->bd...", turn, p) for p in inputs.psi]).to(BOTH[dtype])
    inputs = inputs.to(BOTH[dtype])
    at = setting(inputs)
    # rounding psi to fp32 before and after the turn moves a logit by 2·2⁻²⁴ G √2 more
    assert_within("state", forward(turned, backend), forward(inputs, backend), 3 * at.walk)
    for p, gradient in zip(inputs.psi, both(inputs, backend).grad_psi, strict=True):
        moment = torch.einsum("bdn,ben->de", gradient.double().flatten(2), p.double().flatten(2))
        size = torch.einsum("bdn,ben->de", gradient.double().flatten(2).abs(), p.double().flatten(2).abs())
        noise = PSI_GRADIENT * at.walk * max(size.max().item(), case.batch * case.nodes * FLOOR[at.accumulate])
        assert_within("moment", moment, moment.T, 0.0, floor=noise)


def test_06_images_are_independent(backend: str, case: Case, dtype: str) -> None:
    """Whatever the first image holds, the others keep every bit."""
    inputs = make(case.with_(batch=3), BOTH[dtype])
    other = make(case.with_(batch=3), BOTH[dtype], 1)
    changed = replace(
        inputs,
        seed=torch.cat([other.seed[:1], inputs.seed[1:]]),
        psi=[torch.cat([q[:1], p[1:]]) for p, q in zip(inputs.psi, other.psi, strict=True)],
    )
    ours, theirs = both(inputs, backend), both(changed, backend)
    assert not torch.equal(ours.state[0], theirs.state[0])
    pick = [ours.state, ours.grad_seed, *ours.grad_psi], [theirs.state, theirs.grad_seed, *theirs.grad_psi]
    assert_same([x[1:] for x in pick[0]], [x[1:] for x in pick[1]])


def test_07_classes_are_independent(backend: str, case: Case, dtype: str) -> None:
    """Whatever the last class holds, the others keep every bit."""
    inputs = make(case, BOTH[dtype])
    changed = inputs.seed.clone()
    changed[:, -1] = 17 - 3 * changed[:, -1]
    ours, theirs = forward(inputs, backend), forward(replace(inputs, seed=changed), backend)
    assert not torch.equal(ours[:, -1], theirs[:, -1])
    assert_same([ours[:, :-1]], [theirs[:, :-1]])


def test_08_gates_at_their_ends(backend: str, case: Case, dtype: str) -> None:
    """μ = 0: β s + (1-β) y; β = 0: y; μ = β = 1: P y."""
    inputs = _single(make(case, BOTH[dtype]))
    psi, seed = inputs.psi[0], inputs.seed
    y = make(case, BOTH[dtype], 1).seed
    bound = setting(inputs).walk
    assert_within(
        "μ=0", random_walk(y, psi, seed, 0.0, 0.25, backend=backend), 0.25 * seed + 0.75 * y, 4 * FLOOR[BOTH[dtype]]
    )
    assert torch.equal(random_walk(y, psi, seed, 0.75, 0.0, backend=backend), y)
    P = torch.softmax(psi.double().flatten(2).mT @ psi.double().flatten(2), dim=-1)
    walked = (y.double().flatten(2) @ P.mT).reshape(y.shape)
    assert_within("μ=β=1", random_walk(y, psi, seed, 1.0, 1.0, backend=backend), walked, bound)


def test_09_duplicated_nodes_get_equal_outputs(backend: str, case: Case, dtype: str) -> None:
    inputs = make(case, BOTH[dtype])
    order = torch.arange(case.nodes)
    order[-1], order[case.nodes // 2] = 0, 1
    y = forward(_nodes(inputs, order), backend).flatten(2)
    bound = 2 * setting(inputs).walk
    assert_within("last", y[..., -1], y[..., 0], bound)
    assert_within("middle", y[..., case.nodes // 2], y[..., 1], bound)


def test_10_no_embedding_means_the_uniform_mean(backend: str, case: Case, dtype: str) -> None:
    """S = 0: every node sees the mean, and a padding column, whose logit would be 0 as well, sees nothing."""
    inputs = _gates(_single(make(case.with_(regime="zero"), BOTH[dtype])), 1.0, 1.0)
    mean = inputs.seed.double().flatten(2).mean(-1, keepdim=True).expand(-1, -1, case.nodes).reshape(inputs.seed.shape)
    assert_within("state", forward(inputs, backend), mean, 4 * FLOOR[BOTH[dtype]])


def test_11_far_apart_nodes_see_only_themselves(backend: str, case: Case, dtype: str) -> None:
    """P = I: the seed comes back."""
    inputs = make(case.with_(embed=max(case.embed, 8)), BOTH[dtype])
    apart = torch.arange(1, case.nodes + 1, dtype=BOTH[dtype])
    angle = apart * (3.14159 / (case.nodes + 1))
    psi = torch.zeros(case.batch, max(case.embed, 8), case.nodes, dtype=BOTH[dtype])
    # on a circle the next neighbour is 2 sin(Δ/2) away: this radius leaves it e^-50
    radius = 10 / (2 * (3.14159 / (case.nodes + 1) / 2))
    psi[:, 0], psi[:, 1] = radius * angle.cos(), radius * angle.sin()
    psi = psi.reshape(case.batch, -1, *case.grid)
    y = forward(replace(inputs, psi=[psi] * case.walks), backend)
    assert_within("state", y, inputs.seed, case.walks * 2 * FLOOR[BOTH[dtype]])


def test_12_the_gradient_is_the_adjoint(backend: str, case: Case, dtype: str) -> None:
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩; in the seed the walk is linear, so J v is a walk of v."""
    inputs = make(case, BOTH[dtype])
    v = make(case, BOTH[dtype], 1).seed
    ahead = (forward(replace(inputs, seed=v), backend).double() * inputs.grad.double()).sum()
    back = (both(inputs, backend).grad_seed.double() * v.double()).sum()
    scale = inputs.grad.double().norm() * v.double().norm()
    assert abs(ahead - back) <= 2 * SEED_GRADIENT * setting(inputs).walk * scale


def test_13_the_transpose_conserves_mass(backend: str, case: Case, dtype: str) -> None:
    """Σ_i (Pᵀ g)_i = Σ_i g_i, because rows of P sum to one."""
    inputs = _gates(make(case, BOTH[dtype]), 1.0, 1.0)
    returned = both(inputs, backend).grad_seed.double().flatten(2)
    given = inputs.grad.double().flatten(2)
    bound = case.walks * ROW_SUM[BOTH[dtype]] + SEED_GRADIENT * setting(inputs).walk
    assert_within("mass", returned.sum(-1), given.sum(-1), 0.0, floor=bound * given.abs().sum(-1).max().item())


def test_14_the_first_walks_gates_are_interchangeable(backend: str, case: Case, dtype: str) -> None:
    """With y⁰ = s, y¹ = s + βμ (P s - s): where μ₁ = β₁ their gradients are equal."""
    inputs = make(case, BOTH[dtype])
    gates = torch.cat([torch.tensor([0.625], dtype=BOTH[dtype]), inputs.mu[1:]])
    result = both(replace(inputs, mu=gates, beta=torch.cat([gates[:1], inputs.beta[1:]])), backend)
    scale = inputs.grad.double().norm().item() * inputs.seed.double().abs().max().item()
    assert_within("gates", result.grad_mu[:1], result.grad_beta[:1], 0.0, floor=8 * FLOOR[BOTH[dtype]] * scale)
    assert result.grad_mu[0] != 0


def test_15_flipping_the_image_flips_the_output(backend: str, case: Case, dtype: str) -> None:
    inputs = make(case, BOTH[dtype])
    turned = replace(inputs, seed=inputs.seed.flip(-1), psi=[p.flip(-1) for p in inputs.psi])
    assert_within("state", forward(turned, backend), forward(inputs, backend).flip(-1), 2 * setting(inputs).walk)


def test_16_many_steps_reach_the_closed_form(backend: str, case: Case, dtype: str) -> None:
    """Eq. 3 with one P converges to Eq. 2, and t steps leave at most μᵗ of the distance."""
    inputs = make(case, BOTH[dtype])
    mu = 0.5
    limit = reference.closed_form(inputs.seed.double().flatten(2).mT, inputs.psi[0].double().flatten(2).mT, mu).mT
    steps = cascaded_random_walk(
        inputs.seed, [inputs.psi[0]] * 12, [mu] * 12, [1.0] * 12, backend=backend, return_steps=True
    )
    start = (inputs.seed.double().flatten(2) - limit).abs().max().item()
    at = setting(replace(inputs, psi=inputs.psi[:1]))
    for t, step in enumerate(steps, 1):
        # errors of a walk are halved by every later one: two walks' worth in all
        floor = mu**t * start + 2 * at.walk * inputs.seed.abs().max().item()
        assert_within(f"step {t}", step.double().flatten(2), limit, 0.0, floor=floor)
