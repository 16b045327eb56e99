"""Whatever the logits, up to 1e9: rows of P sum to one, outputs stay within the scores, gradients within their size.

No bound against fp64 can hold here (2⁻²⁴ of a logit of 1e9 is 60), but these truths do not mention the logits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import random_walk
from tests.support.cases import DTYPES, Case, Inputs, make, normal
from tests.support.tolerances import ROW_SUM, assert_within
from tests.support.truth import assert_gradients, both, forward, truth_of

KINDS = ("smooth", "one_hot", "brightening", "shuffled", "equal", "opposed", "outlier", "offset", "clusters")
pytestmark = pytest.mark.usefixtures("poisoned")


def _scaled(kind: str, nodes: int, largest: float, dtype: torch.dtype) -> Inputs:
    """One walk of a kind of embedding, stretched until max‖psi_i‖² = largest."""
    inputs = make(Case(2, (nodes,), 16, 5, 1, kind), torch.float64)
    psi = inputs.psi[0] * (largest / inputs.largest_logit) ** 0.5
    return replace(inputs, psi=[psi]).to(dtype)


def _stays_in_range(y: Tensor, seed: Tensor, room: float) -> None:
    y, s = y.double().flatten(2), seed.double().flatten(2)
    assert bool(y.isfinite().all())
    assert bool((y <= s.amax(-1, keepdim=True) + room).all())
    assert bool((y >= s.amin(-1, keepdim=True) - room).all())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("largest", [1e4, 1e6, pytest.param(1e9, marks=pytest.mark.smoke)])
@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits(backend: str, kind: str, largest: float, dtype: str) -> None:
    """One block of lanes, a ragged tile, and three tiles; a constant class beside random ones shows the row sums."""
    for nodes in (17, 65, 131):
        inputs = _scaled(kind, nodes, largest, DTYPES[dtype])
        inputs.seed[:, 0] = 3.0
        if dtype == "fp16":  # psi of 3e4 times N scores leaves the range of fp16; the gradient is linear in this factor
            inputs = replace(inputs, grad=inputs.grad * 2.0**-12)
        result = both(inputs, backend)
        room = ROW_SUM[DTYPES[dtype]] * inputs.seed.abs().max().item()
        _stays_in_range(result.state, inputs.seed, room)
        assert_within("constant class", result.state[:, 0], inputs.seed[:, 0], ROW_SUM[DTYPES[dtype]])
        # P <= 1 (S is rounded alike in both directions), so |T_ij| <= 2·2·max Σ_k|h||y|, and psi_i gathers N of them
        size = 4 * nodes * (inputs.grad.double().abs().sum(1).max() * inputs.seed.abs().max()).item() * largest**0.5
        assert bool(result.grad_psi[0].isfinite().all())
        assert result.grad_psi[0].abs().max().item() <= 1.01 * size
        assert bool(result.grad_seed.isfinite().all())
        assert result.grad_seed.abs().max().item() <= 1.01 * (nodes + 1) * inputs.grad.abs().max().item()
        assert bool(result.grad_mu.isfinite()) and bool(result.grad_beta.isfinite())


@pytest.mark.smoke
@pytest.mark.needs(bias=True, lse=True)
def test_huge_logits_with_a_bias(backend: str) -> None:
    """A node sees itself alone, by a logit whose rounding is 64: what its weights are measured against has to be that very
    number, or none is left. It happens to a node in a few hundred."""
    nodes, embed = 131, 65
    for number in range(8):
        psi = normal(number, 2, embed, nodes)
        psi = psi * (1e9 / psi.square().sum(1).max()).sqrt()
        bias, seed = 1000 * normal(number + 10, 2, nodes), normal(number + 20, 2, 3, nodes)
        bias[:, 1::2] = -torch.inf
        seed[:, 0] = 3.0
        leaves = [x.requires_grad_() for x in (seed, psi, bias)]
        y, lse = random_walk(seed, psi, seed, 1.0, 1.0, bias=bias, backend=backend, return_lse=True)
        assert_within("constant class", y[:, 0], seed[:, 0], ROW_SUM[torch.float32])
        assert bool(lse.isfinite().all())
        grads = torch.autograd.grad(y.sum(), leaves)
        assert all(bool(grad.isfinite().all()) for grad in grads)
        assert grads[0].abs().max().item() <= 1.01 * (nodes + 1)


@pytest.mark.parametrize("nodes", [7, 64, 65, 200])
def test_equal_nodes_share_equally_at_any_logit(kernel: str, nodes: int) -> None:
    """P = 1/N exactly, also where log N is lost beside the logit: every S_ij must be summed over D in the same order.
    (A BLAS may sum the ragged columns differently, and one ulp of 1e9 is 64.)"""
    for largest in (1e3, 1e6, 1e9):
        inputs = _scaled("equal", nodes, largest, torch.float32)
        inputs = replace(inputs, mu=torch.ones(1), beta=torch.ones(1))
        mean = inputs.seed.double().mean(-1, keepdim=True).expand_as(inputs.seed)
        assert_within("state", forward(inputs, kernel), mean, 0.0, floor=4e-6 * inputs.seed.abs().max().item())


@pytest.mark.parametrize("nodes", [3, 63, 64, 65, 66, 129])
def test_logits_far_below_zero_in_the_ragged_tile(backend: str, nodes: int) -> None:
    """Logits below -1e5 everywhere but on the diagonal: a finite stand-in for -∞, or a padded logit of 0, would win."""
    inputs = make(Case(1, (nodes,), 1, 2, 1))
    psi = torch.full((1, 1, nodes), -400.0)
    psi[..., -1] = 400.0
    inputs = replace(inputs, psi=[psi], mu=torch.ones(1), beta=torch.ones(1))
    y = forward(inputs, backend)
    mean = inputs.seed[..., :-1].double().mean(-1, keepdim=True).expand(-1, -1, nodes - 1)
    assert_within("many", y[..., :-1], mean, 0.0, floor=4e-6 * inputs.seed.abs().max().item())
    assert_within("one", y[..., -1], inputs.seed[..., -1], 4e-6)


@pytest.mark.parametrize("rise", [1.0, 10.0, 15.9, 16.1, 40.0, 90.0, 120.0, 300.0])
@pytest.mark.parametrize(
    "place", ["next node", "next tile", pytest.param("last tile", marks=pytest.mark.smoke), "first tile"]
)
def test_a_row_maximum_off_the_diagonal(backend: str, place: str, rise: float) -> None:
    """S_ij - S_ii = rise for one far node j: below, at and above every threshold at which a running maximum is renewed,
    and beyond the range of exp in fp32 (88) when it is not."""
    nodes = 200
    inputs = make(Case(1, (nodes,), 2, 3, 1, "smooth"), torch.float64)
    place_of = {"next node": 81, "next tile": 140, "last tile": 199, "first tile": 3}[place]
    # all nodes at (4, noise), the far one at (4 + rise / 4, 0): its logit with each of them is rise above theirs
    psi = torch.stack([torch.full((nodes,), 4.0, dtype=torch.float64), 0.5 * inputs.psi[0][0, 1]]).unsqueeze(0)
    psi[..., place_of] = torch.tensor([4 + rise / 4, 0.0], dtype=torch.float64)
    narrow = replace(inputs, psi=[psi]).to(torch.float32)
    truth = truth_of(narrow)
    result = both(narrow, backend)
    assert_gradients(result, narrow, truth)
    assert_within("state", result.state, truth.state, 4e-6 + 4 * 2.0**-24 * narrow.largest_logit)


@pytest.mark.parametrize("step", [0.1, 0.5, 2.0, 8.0])
def test_a_maximum_that_grows_in_every_tile(backend: str, step: float) -> None:
    """Norms that climb tile by tile: the rescaling of one tile is itself rescaled by the next."""
    nodes = 64 * 5 + 9
    inputs = make(Case(1, (nodes,), 3, 4, 2, "smooth"), torch.float64)
    length = 2.0 + step * (torch.arange(nodes) // 64).double()
    psi = [torch.cat([length.expand(1, 1, -1), 0.3 * p[:, 1:]], 1) for p in inputs.psi]
    for order in (slice(None), slice(None, None, -1)):
        turned = [
            p[..., torch.arange(nodes)[order] if order.step is None else torch.arange(nodes).flip(0)] for p in psi
        ]
        narrow = replace(inputs, psi=turned).to(torch.float32)
        result, truth = both(narrow, backend), truth_of(narrow)
        assert_gradients(result, narrow, truth)
        assert_within("state", result.state, truth.state, 2 * (4e-6 + 4 * 2.0**-24 * narrow.largest_logit))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scores_of_any_unit(backend: str, scale: float) -> None:
    """The walk is linear in the scores, so their unit does not matter within the range of fp32."""
    inputs = make(Case(2, (67,), 8, 5, 2, "smooth"))
    plain = both(inputs, backend)
    scaled = both(replace(inputs, seed=inputs.seed * scale), backend)
    assert_within("state", scaled.state / scale, plain.state, 2e-6)
    assert_within("grad_seed", scaled.grad_seed, plain.grad_seed, 2e-6)
    assert_within("grad_psi", scaled.grad_psi[0] / scale, plain.grad_psi[0], 2e-5)


@pytest.mark.parametrize("gap", [60.0, 80.0, 86.0, 100.0, 120.0])
def test_weights_around_the_smallest_float(backend: str, gap: float) -> None:
    """Two groups whose logits differ by about the range of exp in fp32: their weights for each other are at, or under,
    the smallest normal number, and neither direction may lose or invent anything visible."""
    nodes = 150
    inputs = make(Case(1, (nodes,), 4, 3, 1, "smooth"), torch.float64)
    psi = 0.2 * inputs.psi[0]
    psi[:, 0, :75], psi[:, 0, 75:] = gap**0.5 / 2, -(gap**0.5) / 2
    narrow = replace(inputs, psi=[psi]).to(torch.float32)
    result, truth = both(narrow, backend), truth_of(narrow)
    assert_gradients(result, narrow, truth)
    assert_within("state", result.state, truth.state, 4e-6 + 4 * 2.0**-24 * narrow.largest_logit)
