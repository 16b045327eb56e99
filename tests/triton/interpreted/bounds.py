"""The logit-aware bounds of tests/support/tolerances.py, for one problem of this folder."""

from __future__ import annotations

from tests.support.tolerances import CANCELLATION, HALF_ULP, PSI_GRADIENT, SEED_GRADIENT, Setting, assert_within
from tests.triton.interpreted.cascade import Answer, Problem, run, truth


def assert_right(p: Problem, ours: Answer | None = None) -> Answer:
    """Forward and every gradient within the bound; returns what the backend computed."""
    ours, true = ours or run(p), truth(p)
    at = Setting(frozenset(x.dtype for x in (p.seed, *p.psi)), len(p.psi), p.largest_logit, p.precision)
    assert_within("states", ours.states, true.states, at.walk)
    assert_within("grad_seed", ours.grad_seed, true.grad_seed, SEED_GRADIENT * at.walk)
    if true.grad_state is not None and ours.grad_state is not None:
        assert_within("grad_state", ours.grad_state, true.grad_state, SEED_GRADIENT * at.walk)
    # the terms that B4 and B7 subtract from each other leave their rounding however small the difference is
    h = max(p.grad.double().abs().sum(2).max().item(), true.grad_seed.abs().sum(1).max().item())
    size = h * p.seed.double().abs().max().item()
    for t, (mine, theirs) in enumerate(zip(ours.grad_psi, true.grad_psi, strict=True)):
        noise = CANCELLATION * HALF_ULP[at.product] * size * p.largest_logit**0.5
        assert_within(f"grad_psi[{t}]", mine, theirs, PSI_GRADIENT * at.walk, floor=noise)
    terms = p.grad.double().square().sum().sqrt().item() * p.seed.double().abs().max().item()
    for name in ("grad_mu", "grad_beta"):
        assert_within(name, getattr(ours, name), getattr(true, name), at.gate, floor=at.gate * terms)
    return ours
