"""Sums survive a matrix unit that truncates: dot products are computed as such a unit would, over many tiles.

The interpreter rounds to nearest, so here its dot product is replaced: 16 products at a time are added to the sum, and what
does not fit fp32 is cut off. One row tile of a long walk is enough, since every other one does the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton.launch import Card, launch
from difnet_kernels.backends.triton.rows import Launch
from difnet_kernels.backends.triton.walk import host, host_backward, prepare, rows
from difnet_kernels.backends.triton.walk.plan import Layout, plan_walks
from tests.support.tolerances import PSI_GRADIENT, SEED_GRADIENT, Setting
from tests.triton.interpreted.bounds import assert_each
from tests.triton.interpreted.faults import Fault, planted

NODES, ROWS = 4096, 32


def truncated(exact: np.ndarray) -> np.ndarray:
    """To fp32, toward zero."""
    rounded = exact.astype(np.float32)
    return np.where(np.abs(rounded) > np.abs(exact), np.nextafter(rounded, np.float32(0)), rounded)


def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    left, right, total = a.data.astype(np.float64), b.data.astype(np.float64), d.data
    for k in range(0, left.shape[1], 16):
        total = truncated(total + left[:, k : k + 16] @ right[k : k + 16])
    return interpreter.TensorHandle(total, d.dtype.scalar)


@dataclasses.dataclass(frozen=True)
class Diffuse:
    """One walk, μ = β = 1, in which every node looks at all others about alike; the truth of the first rows."""

    seed: Tensor
    psi: Tensor
    grad: Tensor
    walked: Tensor  # (N, K)
    lse: Tensor  # (N,)
    grad_seed: Tensor  # (K, ROWS)
    grad_psi: Tensor  # (D, ROWS)


@pytest.fixture(scope="module")
def diffuse() -> Diffuse:
    chance = torch.Generator().manual_seed(1)
    seed = torch.rand((5, NODES), generator=chance) + 0.5
    psi = 0.3 * torch.randn((4, NODES), generator=chance)
    grad = torch.rand((5, NODES), generator=chance) + 0.5
    y, x, h = seed.double().T, psi.double().T, grad.double().T
    walked, lse = [], []
    for block in x.split(1024):
        S = block @ x.T
        lse.append(torch.logsumexp(S, 1))
        walked.append(torch.exp(S - lse[-1][:, None]) @ y)
    w, lses = torch.cat(walked), torch.cat(lse)
    S = x[:ROWS] @ x.T
    ahead, back = torch.exp(S - lses[:ROWS, None]), torch.exp(S - lses[None])
    delta = (h * w).sum(1)
    T = ahead * (h[:ROWS] @ y.T - delta[:ROWS, None]) + back * (y[:ROWS] @ h.T - delta[None])
    return Diffuse(seed[None], psi[None], grad[None], w, lses, (back @ h).T, (T @ x).T)


@pytest.fixture(autouse=True)
def one_row_tile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Truncating units, tiles of 32 x 64, and of the walks the first program alone."""

    def first(what: str, kernel: Any, programs: int, *groups: Any, **options: Any) -> None:
        launch(what, kernel, 1 if what in ("walk_forward", "walk_backward") else programs, *groups, **options)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(rows, "select", lambda case: Launch(ROWS, 64, 4, 2))
    for module in (host, host_backward):
        monkeypatch.setattr(module, "launch", first)
    yield


ONE = torch.ones(1)


def bound(case: Diffuse) -> float:
    return Setting(frozenset({torch.float32}), 1, case.psi.double().square().sum(1).max().item()).walk


def assert_forward(case: Diffuse) -> None:
    out, walked, row_lse = torch.empty((1, 1, 5, NODES)), torch.empty((1, 1, NODES, 5)), torch.empty((1, 1, NODES))
    triton_backend.cascade_forward(
        None, case.seed, [case.psi], ONE, ONE, "high", states=out, walked=walked, row_lse=row_lse
    )
    assert_each("walked", 0, out[0, 0, :, :ROWS], case.walked[:ROWS].T, bound(case))


def assert_backward(case: Diffuse) -> None:
    """From the truth's walked and lse, the latter as this backend keeps it: log2 units, without the rows' terms."""
    walk = plan_walks("backward", [case.psi], case.seed, "high", Card())[0]
    layout, counters = Layout.of(case.seed, 64), torch.zeros(1, dtype=torch.int32)
    centre = prepare.prepare_psi([case.psi], [None], walk, layout, counters)[0].centre[0, :4].double()
    row_lse = (case.lse - case.psi[0].double().T @ centre) / np.log(2)
    grads = torch.empty_like(case.seed), [torch.empty_like(case.psi)], torch.empty(1), torch.empty(1)
    triton_backend.cascade_backward(
        case.grad[None],
        None,
        case.seed,
        [case.psi],
        ONE,
        ONE,
        case.walked.float()[None, None],
        row_lse.float()[None, None],
        "high",
        grad_state=None,
        grad_seed=grads[0],
        grad_psi=grads[1],
        grad_mu=grads[2],
        grad_beta=grads[3],
    )
    assert_each("grad_seed", 0, grads[0][0, :, :ROWS], case.grad_seed, SEED_GRADIENT * bound(case))
    assert_each("grad_psi", 0, grads[1][0][0, :, :ROWS], case.grad_psi, PSI_GRADIENT * bound(case))


def test_the_walk_survives_truncation(diffuse: Diffuse) -> None:
    assert_forward(diffuse)


def test_its_gradients_survive_truncation(diffuse: Diffuse) -> None:
    assert_backward(diffuse)


CHAINS = {
    "W2": (
        Fault(
            "W2 stays in the unit",
            "walk.forward",
            "tl.fma(acc, tl.exp2(peak - higher)[:, None], made)",
            "tl.dot(weight_hi, y_hi, tl.dot(weight_lo, y_hi, tl.dot(weight_hi, y_lo, acc * tl.exp2(peak - higher)[:, None])))",
        ),
        assert_forward,
    ),
    "B6": (
        Fault(
            "B6 stays in the unit",
            "walk.backward",
            "add_tile(moved, tile_product(back_hi, back_lo, h_hi, h_lo, VALUE_PRODUCTS))",
            "tl.dot(back_hi, h_hi, tl.dot(back_lo, h_hi, tl.dot(back_hi, h_lo, moved)))",
        ),
        assert_backward,
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_sum_that_stays_in_the_unit_drifts(
    diffuse: Diffuse, chain: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the others would prove nothing."""
    fault, judge = CHAINS[chain]
    for (user, name), function in planted(fault, tmp_path).items():
        monkeypatch.setattr(user, name, function)
    with pytest.raises(AssertionError, match="exceeds"):
        judge(diffuse)
