"""The truth itself: the reference backend against formulas written another way, autograd and central differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import reference
from tests.support.cases import FEW, REGIME_CASES, Case, Inputs, make, named
from tests.support.truth import both, forward


def by_hand(seed: Tensor, psi: list[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
    """Eqs. 3-5 on (B, K, *S) with torch's own softmax and einsum, nothing shared with the library."""
    s = seed.flatten(2)
    y = s
    for p, m, b in zip((p.flatten(2) for p in psi), mu, beta, strict=True):
        P = torch.softmax(torch.einsum("bdi,bdj->bij", p, p), dim=-1)
        y = b * (m * torch.einsum("bij,bkj->bki", P, y) + (1 - m) * s) + (1 - b) * y
    return y.reshape(seed.shape)


def by_loops(inputs: Inputs) -> Tensor:
    """The same with Python loops over nodes: no broadcasting, no batching."""
    out = torch.empty_like(inputs.seed)
    for b in range(inputs.seed.shape[0]):
        s = inputs.seed[b].flatten(1)
        y = s.clone()
        for p, m, beta in zip(inputs.psi, inputs.mu.tolist(), inputs.beta.tolist(), strict=True):
            p = p[b].flatten(1)
            after = torch.empty_like(y)
            for i in range(s.shape[1]):
                logits = [float(p[:, i] @ p[:, j]) for j in range(s.shape[1])]
                weights = torch.tensor([logit - max(logits) for logit in logits], dtype=torch.float64).exp()
                walked = (y * weights).sum(1) / weights.sum()
                after[:, i] = beta * (m * walked + (1 - m) * s[:, i]) + (1 - beta) * y[:, i]
            y = after
        out[b] = y.reshape(out[b].shape)
    return out


@pytest.mark.parametrize(**named([*FEW, *REGIME_CASES]))
def test_forward_and_all_gradients_equal_autograd_through_softmax(case: Case) -> None:
    inputs = make(case, torch.float64)
    leaves = [x.clone().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    y = by_hand(seed, psi, mu, beta)
    grads = torch.autograd.grad(y, leaves, inputs.grad)
    ours = both(inputs, "reference")
    # both sides round logits in fp64: 2^-53 G, grown by the gradient's factor of 8 and the sums
    tolerance = 1e-12 + 64 * 2.0**-53 * inputs.largest_logit
    scale = inputs.largest_logit**0.5
    torch.testing.assert_close(ours.state, y.detach(), rtol=tolerance, atol=tolerance)
    for number, (mine, true) in enumerate(zip(ours.tensors()[1:], grads, strict=True)):
        room = tolerance * max(1.0, true.abs().max().item(), scale)
        torch.testing.assert_close(mine, true, rtol=0, atol=room, msg=lambda m, n=number: f"gradient {n}: {m}")


@pytest.mark.smoke
@pytest.mark.parametrize(**named([Case(2, (7,), 3, 2, 3, "smooth"), Case(1, (3, 4), 5, 3, 2, "one_hot")]))
def test_forward_equals_loops_over_nodes(case: Case) -> None:
    inputs = make(case, torch.float64)
    torch.testing.assert_close(forward(inputs, "reference"), by_loops(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("regime", ["smooth", "brightening", "equal", "outlier"])
def test_gradients_equal_central_differences(regime: str) -> None:
    """By hand, not with gradcheck: along random directions in all arguments at once, in fp64."""
    inputs = make(Case(2, (9,), 4, 3, 3, regime), torch.float64)
    truth = both(inputs, "reference")
    chance = torch.Generator().manual_seed(0)
    arguments = [inputs.seed, *inputs.psi, inputs.mu, inputs.beta]
    step = 1e-6
    for _ in range(5):
        directions = [torch.randn(x.shape, generator=chance, dtype=x.dtype) for x in arguments]
        ends = []
        for sign in (1, -1):
            seed, *psi, mu, beta = (x + sign * step * d for x, d in zip(arguments, directions, strict=True))
            ends.append((cascaded_random_walk(seed, psi, mu, beta, backend="reference") * inputs.grad).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        ours = sum((g * d).sum() for g, d in zip(truth.tensors()[1:], directions, strict=True))
        # truncation grows with the third derivative, hence with G
        torch.testing.assert_close(ours, slope, rtol=1e-7 * max(1.0, inputs.largest_logit), atol=1e-6)


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_the_closed_form_solves_its_equation(mu: float) -> None:
    """(W6): y = μ P y + (1-μ) s has y as a fixed point."""
    inputs = make(Case(2, (33,), 8, 3, 1, "smooth"), torch.float64)
    seed, psi = inputs.seed.mT, inputs.psi[0].mT
    y = reference.closed_form(seed, psi, mu)
    P = torch.softmax(psi @ psi.mT, dim=-1)
    torch.testing.assert_close(mu * P @ y + (1 - mu) * seed, y, rtol=1e-12, atol=1e-12)


def test_the_loops_would_notice_a_missing_term() -> None:
    """The twin that proves these comparisons can fail: Eq. 4 without its seed term differs visibly."""
    inputs = make(Case(2, (7,), 3, 2, 3, "smooth"), torch.float64)
    wrong = by_hand(torch.zeros_like(inputs.seed), inputs.psi, inputs.mu, inputs.beta)
    assert (wrong - by_loops(inputs)).abs().max() > 1e-2
