"""A mask: what does not exist is as if it had been cropped. Values and all gradients against a dense fp64 truth that knows a
mask only as a crop, with NaN behind it everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, random_walk, transition_rows
from tests.support.cases import DTYPES, FEW, Case, make, normal
from tests.support.dense import dense
from tests.support.tolerances import (
    CANCELLATION,
    GRADCHECK,
    HALF_ULP,
    PSI_GRADIENT,
    SEED_GRADIENT,
    Setting,
    assert_each,
    assert_within,
)

pytestmark = [pytest.mark.needs(bias=True, lse=True), pytest.mark.usefixtures("poisoned")]


def _padding(shape: tuple[int, ...]) -> Tensor:
    """Images of different sizes in one batch: the last rows and columns of every image but the first do not exist."""
    mask = torch.ones(shape, dtype=torch.bool)
    for image in range(1, shape[0]):
        for axis in range(1, len(shape)):
            size = shape[axis] - min(image, shape[axis] - 1)
            mask[image].narrow(axis - 1, size, shape[axis] - size).fill_(False)
    return mask


MASKS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "padding": _padding,
    "scattered": lambda shape: normal(7, *shape) > 0.3,
    "no node in the last": lambda shape: torch.cat([normal(8, *shape)[:-1] > -0.5, torch.zeros(1, *shape[1:]) > 0]),
    "everything": lambda shape: torch.ones(shape, dtype=torch.bool),
    "one node each": lambda shape: (torch.arange(math.prod(shape[1:])) == 1).view(1, *shape[1:]).expand(shape),
}


@dataclass
class Walk:
    """A walk on fields that hold NaN and infinity wherever the mask is False, but for the state, which comes back."""

    leaves: list[Tensor]  # state, psi, seed, mu, beta, bias
    mask: Tensor
    of_state: Tensor
    of_lse: Tensor
    at: Setting

    @staticmethod
    def make(case: Case, mask: str, dtype: torch.dtype) -> Walk:
        inputs, other = make(case.with_(walks=1), dtype), make(case.with_(walks=1), dtype, 1)
        seed, psi, state = inputs.seed, inputs.psi[0], other.seed
        bias = normal(9, seed.shape[0], *case.grid, dtype=torch.float64).to(dtype)
        there = MASKS[mask](bias.shape)
        at = Setting(frozenset({dtype}), 1, inputs.largest_logit + 4)
        bad = [torch.nan, torch.inf, -torch.inf, torch.nan]
        hidden = [torch.where(there if x.dim() == bias.dim() else there.unsqueeze(1), x, value)
                  for x, value in zip((state, psi, seed, bias), bad, strict=True)]  # fmt: skip
        leaves = [hidden[0], hidden[1], hidden[2], inputs.mu, inputs.beta, hidden[3]]
        return Walk(leaves, there, inputs.grad, normal(13, *bias.shape, dtype=inputs.mu.dtype), at)

    def run(self, backend: str) -> list[Tensor]:
        """The next state, lse and the six gradients."""
        state, psi, seed, mu, beta, bias = leaves = [x.detach().clone().requires_grad_() for x in self.leaves]
        y, lse = random_walk(state, psi, seed, mu, beta, bias=bias, mask=self.mask, backend=backend, return_lse=True)
        grads = torch.autograd.grad([y, lse], leaves, [self.of_state, self.of_lse])
        return [y.detach(), lse.detach(), *grads]

    def true(self) -> list[Tensor]:
        state, psi, seed, mu, beta, bias = leaves = [x.detach().double().requires_grad_() for x in self.leaves]
        (y,), (lse,) = dense(seed, [psi], mu, beta, state=state, bias=[bias], mask=self.mask)
        grads = torch.autograd.grad([y, lse], leaves, [self.of_state.double(), self.of_lse.double()])
        return [y.detach(), lse.detach(), *grads]


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", [pytest.param(FEW[1], marks=pytest.mark.smoke), FEW[2], FEW[3]], ids=str)
def test_masked_is_cropped(backend: str, case: Case, mask: str, dtype: str) -> None:
    walk = Walk.make(case, mask, DTYPES[dtype])
    ours, true = walk.run(backend), walk.true()
    at, there = walk.at, walk.mask
    nodes = there.unsqueeze(1)
    y, lse, of_state, of_psi, of_seed, of_mu, of_beta, of_bias = ours
    # what does not exist: its state comes back, and so does the gradient of it; nothing else has one
    old = walk.leaves[0]
    assert torch.equal(y.masked_select(~nodes).nan_to_num(9e9), old.masked_select(~nodes).nan_to_num(9e9))
    assert (lse[~there] == -torch.inf).all()
    assert torch.equal(of_state.masked_select(~nodes), walk.of_state.masked_select(~nodes))
    assert not any(x.masked_select(~nodes).any() for x in (of_psi, of_seed)) and not of_bias[~there].any()
    # what exists
    terms = walk.of_state.double().abs().sum(1).max().item()
    terms = terms * walk.leaves[0].masked_fill(~nodes, 0).double().abs().max().item() + walk.of_lse.abs().max().item()
    noise = CANCELLATION * HALF_ULP[at.product] * terms
    assert_each("state", 1, y.masked_fill(~nodes, 0), true[0].masked_fill(~nodes, 0), at.walk)
    assert_within("lse", lse[there], true[1][there], 0.0, floor=at.walk)
    assert_each("grad_state", 1, of_state, true[2], SEED_GRADIENT * at.walk)
    assert_each("grad_psi", 1, of_psi, true[3], PSI_GRADIENT * at.walk, floor=noise * at.largest_logit**0.5)
    assert_each("grad_seed", 1, of_seed, true[4], SEED_GRADIENT * at.walk)
    scale = walk.of_state.double().square().sum().sqrt().item() * 10
    assert_within("grad_mu", of_mu, true[5], at.gate, floor=at.gate * scale)
    assert_within("grad_beta", of_beta, true[6], at.gate, floor=at.gate * scale)
    assert_each("grad_bias", 0, of_bias, true[7], PSI_GRADIENT * at.walk, floor=noise)


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_a_cascade_is_cropped_in_every_walk(backend: str, biased: bool, steps: bool) -> None:
    """A masked node returns its seed from every step."""
    case = Case(3, (5, 13), 16, 4, 3, "smooth")
    inputs = make(case)
    mask = MASKS["no node in the last"](torch.Size((3, 5, 13)))
    seed = torch.where(mask.unsqueeze(1), inputs.seed, -torch.inf)
    psi = [torch.where(mask.unsqueeze(1), p, torch.nan) for p in inputs.psi]
    bias = [normal(2, 3, 5, 13), None, normal(3, 3, 5, 13)] if biased else None
    leaves = [x.requires_grad_() for x in (seed, *psi, inputs.mu, inputs.beta)]
    y = cascaded_random_walk(
        seed, psi, inputs.mu, inputs.beta, bias=bias, mask=mask, backend=backend, return_steps=steps
    )
    states = list(y) if steps else [y]
    ours = torch.autograd.grad(states, leaves, [inputs.grad] * len(states))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    wide_bias = [None if b is None else b.double() for b in bias or ()]
    true, _ = dense(wide[0], wide[1:4], *wide[4:], bias=wide_bias, mask=mask)
    true = true if steps else true[-1:]
    true_grads = torch.autograd.grad(true, wide, [inputs.grad.double()] * len(true))
    at = Setting(frozenset({torch.float32}), 3, inputs.largest_logit + 4)
    for a, b in zip(states, true, strict=True):
        hidden = ~mask.unsqueeze(1).expand_as(a)
        assert (a[hidden] == -torch.inf).all()
        assert_each("state", 1, a.detach().masked_fill(hidden, 0), b.detach().masked_fill(hidden, 0), at.walk)
    for name, a, b in zip(("seed", *["psi"] * 3, "mu", "beta"), ours, true_grads, strict=True):
        factor = {"seed": SEED_GRADIENT, "psi": PSI_GRADIENT}.get(name, 100)
        assert_each(name, 0 if a.dim() == 1 else 1, a, b, factor * at.walk, floor=1e-5 * (name == "psi"))


def test_nothing_behind_the_mask_changes_a_bit(backend: str) -> None:
    """Whatever stands there, finite or not."""
    case = Case(2, (70,), 8, 3, 1, "smooth")
    clean = Walk.make(case, "scattered", torch.float32)
    other = Walk.make(case, "scattered", torch.float32)
    hide = ~other.mask
    for n, value in ((1, 7.0), (2, torch.nan), (5, torch.inf)):
        x = other.leaves[n]
        other.leaves[n] = x.masked_fill(hide if x.dim() == 2 else hide.unsqueeze(1), value)
    for a, b in zip(clean.run(backend), other.run(backend), strict=True):
        assert torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))


@pytest.mark.smoke
def test_an_image_without_nodes_returns_its_state(backend: str) -> None:
    inputs = make(Case(1, (9,), 4, 2, 1, "smooth"))
    state, psi, seed = (x.clone().requires_grad_() for x in (inputs.grad, inputs.psi[0], inputs.seed))
    mask = torch.zeros(1, 9, dtype=torch.bool)
    bias = torch.full((1, 9), -torch.inf).requires_grad_()
    gates = inputs.mu.clone().requires_grad_(), inputs.beta.clone().requires_grad_()
    y, lse = random_walk(state, psi, seed, *gates, bias=bias, mask=mask, backend=backend, return_lse=True)
    assert torch.equal(y, state) and (lse == -torch.inf).all()
    grads = torch.autograd.grad([y, lse], [state, psi, seed, bias, *gates], [inputs.seed, torch.ones(1, 9)])
    assert torch.equal(grads[0], inputs.seed)
    assert not any(g.any() or not g.isfinite().all() for g in grads[1:])


def test_the_prediction_of_an_image_does_not_change_with_its_batch_mates(kernel: str) -> None:
    """Padded to the size of a larger one it keeps what it has alone, to rounding; beside another of the padded size, to the
    bit."""
    inputs = make(Case(3, (6, 13), 16, 4, 2, "smooth"))
    mask = torch.zeros(3, 6, 13, dtype=torch.bool)
    mask[0, :4, :9] = mask[1:] = True

    def run(images: slice, size: tuple[int, int] = (6, 13)) -> Tensor:
        seed, *psi = (x[images, :, : size[0], : size[1]].contiguous() for x in (inputs.seed, *inputs.psi))
        there = mask[images, : size[0], : size[1]].contiguous()
        return cascaded_random_walk(seed, psi, inputs.mu, inputs.beta, mask=there, backend=kernel)

    alone, padded, batched = run(slice(0, 1), (4, 9)), run(slice(0, 1)), run(slice(0, 3))
    assert torch.equal(padded[0], batched[0])
    at = Setting(frozenset({torch.float32}), 2, inputs.largest_logit)
    assert_within("state", padded[..., :4, :9], alone, 2 * at.walk)


@pytest.mark.needs(dtype="fp64")
def test_gradcheck(backend: str) -> None:
    inputs = make(Case(2, (7,), 3, 2, 1, "smooth"), torch.float64)
    mask = MASKS["padding"]((2, 7))
    mask[0, 3] = False
    leaves = [x.requires_grad_() for x in (inputs.grad, inputs.psi[0], inputs.seed, inputs.mu, inputs.beta)]
    bias = normal(3, 2, 7, dtype=torch.float64).requires_grad_()

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        y, lse = random_walk(*leaves[:5], bias=leaves[5], mask=mask, backend=backend, return_lse=True)
        return y, lse[mask]

    assert torch.autograd.gradcheck(run, (*leaves, bias), **GRADCHECK)


@pytest.mark.parametrize("grid", [(7,), (6, 11), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_memory_format_stays(backend: str, last: bool, grid: tuple[int, ...]) -> None:
    inputs = make(Case(2, grid, 8, 5, 2, "smooth"))
    mask = MASKS["scattered"](torch.Size((2, *grid)))
    seed, *psi = (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x for x in (inputs.seed, *inputs.psi))
    leaves = [x.detach().requires_grad_() for x in (seed, *psi)]
    steps = cascaded_random_walk(
        leaves[0], leaves[1:], inputs.mu, inputs.beta, mask=mask, backend=backend, return_steps=True
    )
    assert [y.stride() for y in steps] == [seed.stride()] * 2
    grads = torch.autograd.grad(steps[-1], leaves, torch.empty_like(seed).copy_(inputs.grad))
    assert [g.stride() for g in grads] == [x.stride() for x in leaves]
    assert not any(y.dtype != seed.dtype for y in steps)


def test_rows_of_masked_nodes_are_zero() -> None:
    inputs = make(Case(2, (4, 5), 8, 1, 1, "smooth"))
    mask = MASKS["no node in the last"](torch.Size((2, 4, 5)))
    psi = torch.where(mask.unsqueeze(1), inputs.psi[0], torch.nan).requires_grad_()
    bias = torch.where(mask, normal(5, 2, 4, 5), torch.nan).requires_grad_()
    rows = transition_rows(psi, torch.arange(20).expand(2, -1), bias=bias, mask=mask).flatten(2)
    there = mask.flatten(1)
    logits = psi[0].double().flatten(1)[:, there[0]]
    logits = logits.mT @ logits + bias[0].double()[mask[0]]
    expected = torch.zeros(20, 20, dtype=torch.float64)
    expected[there[0].nonzero(), there[0].nonzero()[:, 0]] = logits.softmax(-1)
    torch.testing.assert_close(rows[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert not rows[1].any() and not rows[~there].any()
    grads = torch.autograd.grad(rows, [psi, bias], normal(6, *rows.shape))
    assert all(g.isfinite().all() for g in grads)
    assert not grads[0].masked_select(~mask.unsqueeze(1)).any() and not grads[1][~mask].any()
