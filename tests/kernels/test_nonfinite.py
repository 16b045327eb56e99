"""NaN and Inf reach what the formula says they reach, inside their image and class, and never another image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.cases import DTYPES, Case, Inputs, make
from tests.support.truth import assert_same, both, forward

BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
# the first node, one inside a tile, the last of a full tile, the ragged one
PLACES = (0, 37, 63, 130)
CASE = Case(2, (131,), 8, 3, 2, "smooth")


def _spoiled(x: Tensor, node: int, value: float, channel: int = 1) -> Tensor:
    """x with one bad number in image 0."""
    copy = x.clone()
    copy[0, channel, node] = value
    return copy


def _expected(inputs: Inputs) -> Tensor:
    """Where the dense formula is not finite (infinities and NaN spread alike in fp32 and fp64)."""
    return ~forward(inputs.to(torch.float64), "reference").isfinite()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["seed", "first psi", "last psi"])
@pytest.mark.parametrize("regime", ["smooth", pytest.param("clusters", marks=pytest.mark.smoke), "one_hot"])
def test_a_bad_number_spreads_in_its_image_only(backend: str, regime: str, where: str, value: str) -> None:
    """In a seed it reaches every node of its class, in an embedding every node that looks at it: 0 · NaN is NaN, so
    those too whose weight for it is zero, where a kernel may have skipped the whole tile."""
    clean = make(CASE.with_(regime=regime))
    before = forward(clean, backend)
    for node in PLACES:
        if where == "seed":
            inputs = replace(clean, seed=_spoiled(clean.seed, node, BAD[value]))
        else:
            t = 0 if where == "first psi" else 1
            inputs = replace(
                clean, psi=[_spoiled(p, node, BAD[value]) if i == t else p for i, p in enumerate(clean.psi)]
            )
        after = forward(inputs, backend)
        expected = _expected(inputs)
        assert expected.any()
        lost = expected & after.isfinite()
        assert not lost.any(), f"node {node}: {int(lost.sum())} of {int(expected.sum())} bad results look healthy"
        assert torch.equal(after[1], before[1])
        if where == "seed":
            assert_same([after[0, [0, 2]]], [before[0, [0, 2]]])
            assert expected[0, 1].all()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["seed", "psi", "grad"])
@pytest.mark.parametrize("regime", ["smooth", "clusters"])
def test_gradients_of_other_images_do_not_notice(backend: str, regime: str, where: str, value: str) -> None:
    clean = make(CASE.with_(regime=regime))
    before = both(clean, backend)
    for node in PLACES:
        inputs = {
            "seed": lambda n=node: replace(clean, seed=_spoiled(clean.seed, n, BAD[value])),
            "psi": lambda n=node: replace(clean, psi=[_spoiled(p, n, BAD[value]) for p in clean.psi]),
            "grad": lambda n=node: replace(clean, grad=_spoiled(clean.grad, n, BAD[value])),
        }[where]()
        after = both(inputs, backend)
        for mine, yours in zip((after.grad_seed, *after.grad_psi), (before.grad_seed, *before.grad_psi), strict=True):
            assert torch.equal(mine[1], yours[1])
        assert not after.grad_mu.isfinite().all(), "the gates belong to all images, so they must show it"
        # the walk is linear in the seed, so its gradient has no seed in it
        assert (where == "seed") == bool(after.grad_seed[0].isfinite().all())
        assert not after.grad_psi[0][0].isfinite().all()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("regime", ["smooth", "clusters", "one_hot"])
def test_a_bad_gradient_reaches_all_it_touches(backend: str, regime: str, value: str) -> None:
    """∂L/∂y_j = Σ_i P_ij h_i: one bad h_i spoils its class in every node, again also where P_ij is zero."""
    clean = make(CASE.with_(regime=regime, walks=1))
    for node in PLACES:
        inputs = replace(clean, grad=_spoiled(clean.grad, node, BAD[value]))
        gradient = both(inputs, backend).grad_seed
        assert not gradient[0, 1].isfinite().any()
        assert gradient[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("where", ["seed", "psi"])
def test_in_every_dtype(backend: str, where: str, dtype: str) -> None:
    clean = make(CASE.with_(regime="clusters"), DTYPES[dtype])
    before = forward(clean, backend)
    for value in BAD.values():
        if where == "seed":
            inputs = replace(clean, seed=_spoiled(clean.seed, 70, value))
        else:
            inputs = replace(clean, psi=[_spoiled(p, 70, value) for p in clean.psi])
        after = forward(inputs, backend)
        assert not (_expected(inputs) & after.isfinite()).any()
        assert torch.equal(after[1], before[1])


def test_an_image_of_nothing_but_nan(backend: str) -> None:
    clean = make(CASE)
    before = both(clean, backend)
    seed, psi = clean.seed.clone(), [p.clone() for p in clean.psi]
    for x in (seed, *psi):
        x[0] = torch.nan
    after = both(replace(clean, seed=seed, psi=psi), backend)
    assert after.state[0].isnan().all()
    assert torch.equal(after.state[1], before.state[1])
    assert torch.equal(after.grad_psi[0][1], before.grad_psi[0][1])
