"""Rows of P for chosen nodes: where a node looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from difnet_kernels import cascaded_random_walk, transition_rows
from tests.support.cases import DTYPES, Case, make, normal
from tests.support.embeddings import REGIMES

GRIDS = ((17,), (5, 7), (3, 4, 5))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_are_rows_of_the_dense_matrix(grid: tuple[int, ...], dtype: str) -> None:
    inputs = make(Case(2, grid, 8, 1, 1, "smooth"), DTYPES[dtype])
    nodes = torch.randint(math.prod(grid), (2, 6), generator=torch.Generator().manual_seed(0))
    psi = inputs.psi[0].double().flatten(2)
    P = torch.softmax(psi.mT @ psi, dim=-1)
    rows = transition_rows(inputs.psi[0], nodes)
    assert rows.shape == (2, 6, *grid)
    assert rows.dtype == (torch.float64 if dtype == "fp64" else torch.float32)
    expected = torch.stack([P[b][nodes[b]] for b in range(2)])
    torch.testing.assert_close(rows.flatten(2).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_coordinates_are_flat_indices(grid: tuple[int, ...]) -> None:
    psi = make(Case(2, grid, 8, 1, 1, "smooth")).psi[0]
    flat = torch.arange(math.prod(grid)).expand(2, -1)
    coordinates = torch.stack(torch.unravel_index(flat, grid), dim=-1)
    assert torch.equal(transition_rows(psi, coordinates), transition_rows(psi, flat))
    assert torch.equal(transition_rows(psi, coordinates.int()), transition_rows(psi, flat))


@pytest.mark.parametrize("regime", REGIMES)
def test_rows_sum_to_one(regime: str) -> None:
    psi = make(Case(1, (65,), 16, 1, 1, regime)).psi[0]
    rows = transition_rows(psi, torch.arange(65).unsqueeze(0))
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 65), rtol=1e-5, atol=1e-5)
    assert rows.min() >= 0
    if regime in ("equal", "zero"):
        torch.testing.assert_close(rows, torch.full((1, 65, 65), 1 / 65), rtol=1e-5, atol=0)


def test_rows_are_what_a_walk_averages_with(backend: str) -> None:
    """Row i of P times the scores is node i of P y."""
    inputs = make(Case(2, (4, 5), 8, 3, 1, "smooth"))
    rows = transition_rows(inputs.psi[0], torch.arange(20).expand(2, -1)).flatten(2)
    walked = torch.einsum("bij,bkj->bki", rows, inputs.seed.flatten(2)).reshape(inputs.seed.shape)
    y = cascaded_random_walk(inputs.seed, inputs.psi, [1.0], [1.0], backend=backend)
    torch.testing.assert_close(y, walked, rtol=1e-5, atol=1e-5)


def test_strides_and_autocast_do_not_matter() -> None:
    psi = make(Case(2, (5, 7), 8, 1, 1, "smooth")).psi[0]
    nodes = torch.tensor([[0, 34, 7], [3, 3, 3]])
    expected = transition_rows(psi, nodes)
    last = psi.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(transition_rows(last, nodes), expected, rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transition_rows(psi, nodes), expected)


def test_repeated_and_no_nodes() -> None:
    psi = make(Case(2, (5, 7), 8, 1, 1, "smooth")).psi[0]
    rows = transition_rows(psi, torch.tensor([[4, 4], [4, 4]]))
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert transition_rows(psi, torch.empty(2, 0, 2, dtype=torch.long)).shape == (2, 0, 5, 7)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["lists", "array", "int32", "tuple"])
def test_nodes_in_every_accepted_form(kind: str) -> None:
    psi, nodes = normal(1, 2, 4, 5, 6), [[[1, 2]], [[3, 4]]]
    given = {"lists": nodes, "array": np.array(nodes), "int32": torch.tensor(nodes).int(), "tuple": tuple(nodes)}[kind]
    assert torch.equal(transition_rows(psi, given), transition_rows(psi, torch.tensor([[8], [22]])))


@pytest.mark.smoke
def test_the_default_device_is_not_asked() -> None:
    """Everything it makes lies where psi lies."""
    psi, nodes = torch.randn(1, 3, 4, 5), torch.tensor([[[1, 2]]])
    expected = transition_rows(psi, nodes)
    torch.set_default_device("meta")
    try:
        assert torch.equal(transition_rows(psi, nodes), expected)
    finally:
        torch.set_default_device(None)


def test_nodes_of_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes must be on the device of psi, cpu; got meta"):
        transition_rows(torch.randn(1, 3, 4, 5), torch.zeros(1, 1, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("coordinates", [False, True], ids=["flat", "coordinates"])
def test_rows_compile_and_export(coordinates: bool) -> None:
    class Rows(torch.nn.Module):
        def forward(self, psi: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
            return transition_rows(psi, nodes)

    psi, nodes = torch.randn(2, 3, 4, 5), torch.tensor([[[1, 2]], [[3, 4]]])
    nodes = nodes if coordinates else nodes[..., 0]
    expected = transition_rows(psi, nodes)
    compiled = torch.compile(transition_rows, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(psi, nodes), expected)
    torch.testing.assert_close(torch.export.export(Rows(), (psi, nodes)).module()(psi, nodes), expected)
    outside = torch.full_like(nodes, 5) if coordinates else torch.full_like(nodes, 20)
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds|out of range"):
        compiled(psi, outside)
