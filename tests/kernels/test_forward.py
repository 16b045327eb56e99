"""Every backend computes the cascade: max and RMS error against fp64, in every dtype, on edges of tiles and lanes."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import DTYPES, PAPER, REGIME_CASES, SHAPES, Case, Inputs, make, normal
from tests.support.truth import assert_forward, forward, known, truth_of

SMOKE_NODES = (1, 3, 17, 64, 65, 129)
pytestmark = pytest.mark.usefixtures("poisoned")


def _grid() -> list[object]:
    """Every shape and every regime in every dtype; large grids only in the two that differ in code path."""
    rows = []
    for case in (*SHAPES, *REGIME_CASES):
        for dtype in DTYPES:
            if case.nodes > 257 and dtype in ("fp64", "fp16"):
                continue
            quick = case.nodes in (SMOKE_NODES if case in SHAPES else (127,))
            quick = quick and (dtype == "fp32" or (dtype == "bf16" and case.nodes == 65))
            rows.append(pytest.param(case, dtype, id=f"{case}-{dtype}", marks=[pytest.mark.smoke] * quick))
    return rows


@pytest.mark.parametrize(("case", "dtype"), _grid())
def test_the_cascade_is_right(backend: str, case: Case, dtype: str) -> None:
    inputs, truth = known(case, DTYPES[dtype])
    assert_forward(forward(inputs, backend), inputs, truth)


@pytest.mark.parametrize("case", [*SHAPES[10:20:3], Case(2, (33,), 16, 5, 2, "zero")], ids=str)
def test_medium_precision_keeps_its_own_bound(backend: str, case: Case) -> None:
    """Also where there are no logits: P and y are rounded, too."""
    inputs, truth = known(case, torch.float32)
    assert_forward(forward(inputs, backend, "medium"), inputs, truth, "medium")


@pytest.mark.parametrize("seed_dtype", DTYPES)
@pytest.mark.parametrize("psi_dtype", DTYPES)
def test_dtypes_mix(backend: str, seed_dtype: str, psi_dtype: str) -> None:
    """Scores and embeddings each keep their own dtype; sums are fp32, or fp64 once a field is fp64."""
    wide = make(Case(2, (35,), 16, 5, 2, "smooth"), torch.float64)
    inputs = Inputs(
        wide.seed.to(DTYPES[seed_dtype]),
        [p.to(DTYPES[psi_dtype]) for p in wide.psi],
        wide.mu.float(),
        wide.beta.float(),
        wide.grad.to(DTYPES[seed_dtype]),
    )
    assert_forward(forward(inputs, backend), inputs, truth_of(inputs))


def test_walks_of_different_width_and_dtype(backend: str) -> None:
    """psi_t may differ from walk to walk, in D as in dtype."""
    inputs = make(Case(2, (6, 7), 1, 4, 4, "smooth"))
    widths, dtypes = (1, 70, 16, 3), (torch.float32, torch.bfloat16, torch.float16, torch.float32)
    psi = [normal(d, 2, d, 6, 7).to(dtype) for d, dtype in zip(widths, dtypes, strict=True)]
    inputs = Inputs(inputs.seed, psi, inputs.mu, inputs.beta, inputs.grad)
    assert_forward(forward(inputs, backend), inputs, truth_of(inputs))


@pytest.mark.parametrize("grid", [(30,), (5, 6), (2, 3, 5), (1, 30, 1), (3, 1, 5, 2)], ids=str)
def test_any_number_of_spatial_axes(backend: str, grid: tuple[int, ...]) -> None:
    """Signals, images, volumes: only the number of nodes matters, so all shapes of 30 nodes agree exactly."""
    case = Case(2, (30,), 8, 3, 2, "smooth")
    inputs, truth = known(case, torch.float32)
    shaped = Inputs(
        inputs.seed.reshape(2, 3, *grid),
        [p.reshape(2, 8, *grid) for p in inputs.psi],
        inputs.mu,
        inputs.beta,
        inputs.grad,
    )
    ours = forward(shaped, backend)
    assert ours.shape == (2, 3, *grid)
    assert torch.equal(ours.flatten(2), forward(inputs, backend))
    assert_forward(ours.flatten(2), inputs, truth)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["train321_one"])
def test_the_problems_of_the_paper(backend: str, name: str) -> None:
    inputs, truth = known(PAPER[name], torch.float32)
    assert_forward(forward(inputs, backend), inputs, truth)


def test_eval505_and_context60_in_one_row_block(backend: str) -> None:
    """The larger problems of the paper against a truth for 64 of their rows, so that no N x N is needed in fp64."""
    for name in ("eval505", "context60"):
        inputs = make(PAPER[name])
        rows = torch.arange(0, 4096, 64)
        seed, psi = inputs.seed.double().flatten(2)[0], inputs.psi[0].double().flatten(2)[0]
        walked = torch.softmax(psi[:, rows].T @ psi, dim=-1) @ seed.T
        mu, beta = inputs.mu.double(), inputs.beta.double()
        # written out, because a truth that called the reference would share its mistakes
        true = beta * (mu * walked.T + (1 - mu) * seed[:, rows]) + (1 - beta) * seed[:, rows]
        ours = forward(inputs, backend).flatten(2)[0][:, rows].double()
        bound = 2e-6 + 4 * 2.0**-24 * inputs.largest_logit
        assert (ours - true).abs().max() <= bound * true.abs().max()
