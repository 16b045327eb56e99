"""The backward kernels on the twin: right class by class and channel by channel, with the same bits whoever computes what, and
when. `pytest --backends cuda-host tests/kernels` runs the tests that every backend passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda import twin
from tests.cuda.test_forward import CASES, DICE, SMALL
from tests.cuda.twin import CARD, Machine
from tests.support.cases import DTYPES, Case, Inputs, make, normal
from tests.support.truth import Result as Gradients
from tests.support.truth import assert_gradients, assert_same, known

pytestmark = pytest.mark.usefixtures("poisoned")


class Back:
    """Every gradient of ⟨grad, yᵀ⟩ and ⟨grad_lse, lse⟩, after a forward of its own."""

    def __init__(
        self,
        inputs: Inputs,
        machine: Machine = CARD,
        bias: list[Tensor | None] | None = None,
        grad_lse: list[Tensor | None] | None = None,
    ) -> None:
        seed, psi = inputs.seed.flatten(2), [p.flatten(2) for p in inputs.psi]
        more: dict[str, Any] = {} if bias is None else {"bias": bias}
        kept = torch.empty((len(psi), seed.shape[0], seed.shape[2], seed.shape[1]))
        row_lse = torch.empty(kept.shape[:3])
        given = (None, seed, psi, inputs.mu, inputs.beta)
        twin.cascade_forward(*given, "high", states=[torch.empty_like(seed)], walked=kept, row_lse=row_lse, **more)
        self.seed, self.psi = torch.empty_like(seed), [torch.empty_like(p) for p in psi]
        self.mu, self.beta = torch.empty_like(inputs.mu), torch.empty_like(inputs.beta)
        self.bias = [None if b is None else torch.empty_like(b) for b in bias or ()]
        if grad_lse is not None:
            more["grad_lse"] = grad_lse
        self.report = twin.cascade_backward(
            [inputs.grad.flatten(2).to(seed.dtype)], *given, kept, row_lse, "high", grad_state=None, grad_seed=self.seed,
            grad_psi=self.psi, grad_mu=self.mu, grad_beta=self.beta, grad_bias=self.bias, machine=machine, **more,
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        return [self.seed, *self.psi, self.mu, self.beta, *(b for b in self.bias if b is not None)]


def assert_right(inputs: Inputs, ours: Back, truth: Gradients) -> None:
    whole = Gradients(
        truth.state, ours.seed.view(inputs.seed.shape), [p.view(q.shape) for p, q in zip(ours.psi, inputs.psi, strict=True)],
        ours.mu, ours.beta,
    )  # fmt: skip
    assert_gradients(whole, inputs, truth)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "parts"), [("fp32", 3), ("bf16", 2)])
def test_every_cut_is_right(case: Case, dtype: str, parts: int) -> None:
    """Parts by blocks of their own, and all parts by one block: right, and the same bits."""
    inputs, truth = known(case, DTYPES[dtype])
    apart = Back(inputs, Machine(parts=parts))
    assert_right(inputs, apart, truth)
    assert apart.report.bank_conflicts == 0
    assert_same(Back(inputs, Machine(parts=parts, all_parts=True, schedule=7)).tensors(), apart.tensors())


@pytest.mark.parametrize("parts", [0, 3])
def test_workers_and_schedules_change_no_bit(parts: int) -> None:
    inputs = make(Case(2, (150,), 16, 5, 2, "photo"))
    alone = Back(inputs, Machine(workers=1, parts=parts)).tensors()
    for workers, schedule in ((2, 1), (7, 2), (132, 3), (8, 4), (8, 5)):
        assert_same(Back(inputs, Machine(workers, schedule, parts=parts)).tensors(), alone)


def test_an_image_alone_equals_itself_in_a_batch() -> None:
    inputs = make(Case(3, (130,), 16, 5, 2, "smooth"))
    for machine in (CARD, Machine(parts=2)):
        together = Back(inputs, machine)
        for b in range(3):
            part = slice(b, b + 1)
            one = replace(inputs, seed=inputs.seed[part], psi=[p[part] for p in inputs.psi], grad=inputs.grad[part])
            alone = Back(one, machine)
            assert_same([alone.seed, *alone.psi], [together.seed[part], *(p[part] for p in together.psi)])


def test_walks_in_one_launch_equal_as_many_launches() -> None:
    inputs = make(Case(2, (70,), 16, 5, 5, "smooth"))
    once = Back(inputs)
    for at_a_time, launches in ((1, 5), (2, 3), (4, 2)):
        parts = Back(inputs, Machine(walks_at_a_time=at_a_time))
        assert (once.report.launches, parts.report.launches) == (1, launches)
        assert_same(parts.tensors(), once.tensors())


def test_more_walks_than_a_launch_holds() -> None:
    inputs, truth = known(Case(1, (9,), 4, 3, 45, "smooth"), torch.float32)
    ours = Back(inputs)
    assert ours.report.launches == 3
    assert_right(inputs, ours, truth)


@pytest.mark.parametrize("holes", [False, True])
def test_a_bias_and_lse_have_gradients(holes: bool) -> None:
    """(B4b, B8) against autograd in fp64; with holes every tile computes two exponentials."""
    inputs = make(SMALL)
    B, N = inputs.seed.shape[0], inputs.seed.shape[2]
    draw = torch.randn(3, B, N, generator=DICE.manual_seed(5))
    bias = [torch.where(draw[t] > 1, -torch.inf, draw[t]) if holes else draw[t] for t in range(3)]
    grad_lse: list[Tensor | None] = [normal(9, B, N), None, normal(8, B, N)]
    ours = Back(inputs, bias=list(bias), grad_lse=grad_lse)
    exact = inputs.to(torch.float64)
    leaves = [x.clone().requires_grad_() for x in (exact.seed, *exact.psi, exact.mu, exact.beta)]
    of_bias = [b.double().requires_grad_() for b in bias]
    s, y, loss = leaves[0].mT, leaves[0].mT, torch.zeros((), dtype=torch.float64)
    for t in range(3):
        logits = leaves[1 + t].mT @ leaves[1 + t] + of_bias[t].unsqueeze(1)
        mixed = leaves[-2][t] * (logits.softmax(-1) @ y) + (1 - leaves[-2][t]) * s
        y = leaves[-1][t] * mixed + (1 - leaves[-1][t]) * y
        if grad_lse[t] is not None:
            loss = loss + (logits.logsumexp(-1) * grad_lse[t].double()).sum()  # type: ignore[union-attr]
    truth = torch.autograd.grad(loss + (y.mT * exact.grad).sum(), [*leaves, *of_bias])
    for number, (mine, true) in enumerate(zip(ours.tensors(), truth, strict=True)):
        error = (mine.double() - true).abs().max()
        assert error <= 2e-5 * true.abs().max(), f"gradient {number}: {error / true.abs().max():.1e}"


def test_only_what_is_asked_for_is_computed_and_with_the_same_bits() -> None:
    """Without ∂ψ of a walk, without ∂L/∂y, and with the walks before the first that learns left out."""
    inputs = make(SMALL)
    everything = Back(inputs)
    seed, psi = inputs.seed, inputs.psi
    kept, row_lse = torch.empty((3, 2, 65, 5)), torch.empty((3, 2, 65))
    given = (None, seed, psi, inputs.mu, inputs.beta)
    twin.cascade_forward(*given, "high", states=[torch.empty_like(seed)], walked=kept, row_lse=row_lse)
    last, only_seed = torch.empty_like(psi[2]), torch.empty_like(seed)
    asked: Sequence[tuple[list[Tensor | None], Tensor | None]] = [([None, None, last], None), ([None] * 3, only_seed)]
    for grad_psi, grad_seed in asked:
        twin.cascade_backward(
            [inputs.grad], *given, kept, row_lse, "high", grad_state=None, grad_seed=grad_seed, grad_psi=grad_psi,
            grad_mu=None, grad_beta=None,
        )  # fmt: skip
    assert_same([last, only_seed], [everything.psi[2], everything.seed])


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_a_loss_in_any_unit_and_rare_classes(size: float) -> None:
    """Classes of 1e-8 beside the rest, and a loss of any size: every class and channel to its own bound."""
    inputs = make(Case(2, (100,), 16, 6, 2, "smooth"))
    scores = inputs.seed.double()
    scores[:, :3] -= 18.0
    inputs = replace(inputs, seed=scores.softmax(1).float())
    truth = Back(inputs)
    scaled = Back(replace(inputs, grad=inputs.grad * size))
    for mine, true in zip(scaled.tensors(), truth.tensors(), strict=True):
        assert (mine.double() / size - true.double()).abs().max() <= 2e-6 * true.abs().max()
