"""The logit-aware bounds of tests/support/tolerances.py, for one problem of this folder, per class and per channel."""

from __future__ import annotations

from torch import Tensor

from tests.support.tolerances import CANCELLATION, HALF_ULP, PSI_GRADIENT, SEED_GRADIENT, Setting, assert_within
from tests.triton.interpreted.cascade import Answer, Problem, run, truth

# what plain fp32 leaves where no logit of the rows that matter is large: y, and the gradient of psi, relative to the
# largest number of each class and channel
PLAIN, PLAIN_PSI = 2e-6, 2e-5


def assert_each(name: str, axis: int, ours: Tensor, truth: Tensor, bound: float, *, floor: float = 0.0) -> None:
    """`assert_within` for every class or channel by itself: an error in a small one cannot hide behind a large one."""
    for number, (mine, theirs) in enumerate(zip(ours.unbind(axis), truth.unbind(axis), strict=True)):
        assert_within(f"{name}, number {number} of axis {axis}", mine, theirs, bound, floor=floor)


def assert_right(p: Problem, ours: Answer | None = None) -> Answer:
    """Forward and every gradient within the bound; returns what the backend computed."""
    ours, true = ours or run(p), truth(p)
    at = Setting(frozenset(x.dtype for x in (p.seed, *p.psi)), len(p.psi), p.largest_logit, p.precision)
    assert_each("states", 2, ours.states, true.states, at.walk)
    assert_each("grad_seed", 1, ours.grad_seed, true.grad_seed, SEED_GRADIENT * at.walk)
    if true.grad_state is not None and ours.grad_state is not None:
        assert_each("grad_state", 1, ours.grad_state, true.grad_state, SEED_GRADIENT * at.walk)
    # the terms that B4 and B7 subtract from each other leave their rounding however small the difference is
    # (so does the gradient of lse, for it is added to δ)
    pulled = max((g.abs().max().item() for g in p.grad_lse if g is not None), default=0.0)
    h = max(p.grad.double().abs().sum(2).max().item(), true.grad_seed.abs().sum(1).max().item())
    size = h * p.seed.double().abs().max().item() + pulled
    for t, (mine, theirs) in enumerate(zip(ours.grad_psi, true.grad_psi, strict=True)):
        noise = CANCELLATION * HALF_ULP[at.product] * size * p.largest_logit**0.5
        assert_each(f"grad_psi[{t}]", 1, mine, theirs, PSI_GRADIENT * at.walk, floor=noise)
    for t, (mine, theirs) in enumerate(zip(ours.grad_bias, true.grad_bias, strict=True)):
        if mine is not None and theirs is not None:
            noise = CANCELLATION * HALF_ULP[at.product] * size
            assert_each(f"grad_bias[{t}]", 0, mine, theirs, PSI_GRADIENT * at.walk, floor=noise)
    for t, (mine, theirs) in enumerate(zip(ours.lse, true.lse, strict=False)):
        assert_each(f"lse[{t}]", 0, mine, theirs, 0.0, floor=4 * at.walk / at.walks)
    terms = p.grad.double().square().sum().sqrt().item() * p.seed.double().abs().max().item()
    for name in ("grad_mu", "grad_beta"):
        assert_within(name, getattr(ours, name), getattr(true, name), at.gate, floor=at.gate * terms)
    return ours


def assert_as_plain_fp32(p: Problem) -> Answer:
    """y and the gradients as plain fp32 would have them, whatever the bound in the largest logit allows."""
    ours, true = run(p), truth(p)
    assert_each("states", 2, ours.states, true.states, PLAIN)
    assert_each("grad_seed", 1, ours.grad_seed, true.grad_seed, PLAIN)
    for t, (mine, theirs) in enumerate(zip(ours.grad_psi, true.grad_psi, strict=True)):
        assert_each(f"grad_psi[{t}]", 1, mine, theirs, PLAIN_PSI)
    for t, (mine, theirs) in enumerate(zip(ours.grad_bias, true.grad_bias, strict=True)):
        if mine is not None and theirs is not None:
            assert_each(f"grad_bias[{t}]", 0, mine, theirs, PLAIN_PSI)
    return ours
