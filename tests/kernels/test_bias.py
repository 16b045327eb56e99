"""A bias per column and the log-normaliser (W1b, B4b, B8): values and all gradients against a dense fp64 truth that shares no
code with the package, for every class and channel by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, random_walk
from tests.support.cases import DTYPES, FEW, Case, make, normal
from tests.support.dense import dense
from tests.support.tolerances import (
    CANCELLATION,
    FLOOR,
    GRADCHECK,
    HALF_ULP,
    PSI_GRADIENT,
    SEED_GRADIENT,
    Setting,
    assert_each,
    assert_within,
)

pytestmark = [pytest.mark.needs(bias=True, lse=True), pytest.mark.usefixtures("poisoned")]


def _holes(psi: Tensor) -> Tensor:
    """A third of the columns gone, the first and last of a tile among them, beside biases of a few units."""
    b = 2 * normal(11, psi.shape[0], *psi.shape[2:], dtype=torch.float64)
    gone = normal(12, *b.shape) > 0.4
    gone.flatten(1)[:, ::64] = True
    gone.flatten(1)[:, -1] = psi[0, 0].numel() > 2
    gone.flatten(1)[:, 1:2] = False
    return torch.where(gone, -torch.inf, b)


BIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda psi: 2 * normal(10, psi.shape[0], *psi.shape[2:], dtype=torch.float64),
    "gaussian": lambda psi: -psi.double().square().sum(1) / 2,
    "holes": _holes,
    # beyond the integers that kernels may add to exponents
    "far": lambda psi: -1e5 + 2 * normal(10, psi.shape[0], *psi.shape[2:], dtype=torch.float64),
    # a few columns that outweigh any distance
    "lifted": lambda psi: (
        600.0
        * (torch.arange(psi[0, 0].numel(), device=psi.device) < 3)
        .double()
        .expand(psi.shape[0], -1)
        .reshape(psi.shape[0], *psi.shape[2:])
    ),
    # along the nodes: a maximum that starts at the node itself has to follow
    "rising": lambda psi: (
        torch.linspace(-80, 80, psi[0, 0].numel(), dtype=torch.float64, device=psi.device)
        .expand(psi.shape[0], -1)
        .reshape(psi.shape[0], *psi.shape[2:])
    ),
}


@dataclass
class Walk:
    """One walk and what enters its loss."""

    state: Tensor
    psi: Tensor
    seed: Tensor
    mu: Tensor
    beta: Tensor
    bias: Tensor
    of_state: Tensor
    of_lse: Tensor

    @staticmethod
    def make(case: Case, bias: str, dtype: torch.dtype, loss: str = "both") -> Walk:
        inputs, other = make(case.with_(walks=1), dtype), make(case.with_(walks=1), dtype, 1)
        psi = inputs.psi[0]
        of_lse = normal(13, psi.shape[0], *psi.shape[2:], dtype=inputs.mu.dtype)
        return Walk(
            other.seed,
            psi,
            inputs.seed,
            inputs.mu,
            inputs.beta,
            BIASES[bias](psi).to(dtype),
            inputs.grad * (loss != "lse"),
            of_lse * (loss != "state"),
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [
            x.detach().clone().requires_grad_()
            for x in (self.state, self.psi, self.seed, self.mu, self.beta, self.bias)
        ]

    def run(self, backend: str) -> list[Tensor]:
        """The next state, lse and the six gradients."""
        state, psi, seed, mu, beta, bias = leaves = self.leaves
        y, lse = random_walk(state, psi, seed, mu, beta, bias=bias, backend=backend, return_lse=True)
        grads = torch.autograd.grad([y, lse], leaves, [self.of_state.to(y.dtype), self.of_lse.to(lse.dtype)])
        return [y.detach(), lse.detach(), *grads]

    def true(self) -> list[Tensor]:
        state, psi, seed, mu, beta, bias = leaves = [x.detach().double().requires_grad_() for x in self.leaves]
        (y,), (lse,) = dense(seed, [psi], mu, beta, state=state, bias=[bias])
        grads = torch.autograd.grad([y, lse], leaves, [self.of_state.double(), self.of_lse.double()])
        return [y.detach(), lse.detach(), *grads]

    @property
    def at(self) -> Setting:
        finite = self.bias[self.bias.isfinite()].double().abs()
        largest = self.psi.double().square().sum(1).max().item() + (finite.max().item() if finite.numel() else 0.0)
        return Setting(frozenset(x.dtype for x in (self.state, self.psi, self.seed, self.bias)), 1, largest)

    def check(self, ours: list[Tensor], true: list[Tensor]) -> None:
        at = self.at
        y, lse, of_state, of_psi, of_seed, of_mu, of_beta, of_bias = ours
        wide = self.of_state.double()
        # the terms that B4 subtracts from each other, Σ_k |h||y| and |g|, times ‖psi‖
        h = max(wide.abs().sum(1).max().item(), true[2].abs().sum(1).max().item())
        terms = h * self.state.double().abs().max().item() + self.of_lse.double().abs().max().item()
        noise = CANCELLATION * HALF_ULP[at.product] * terms
        scale = wide.square().sum().sqrt().item() * max(x.double().abs().max().item() for x in (self.state, self.seed))
        assert y.dtype == self.state.dtype and lse.dtype == at.accumulate
        assert_each("state", 1, y, true[0], at.walk)
        # log of a sum whose terms have the relative errors of the weights
        assert_within("lse", lse, true[1], 0.0, floor=at.walk)
        assert_each("grad_state", 1, of_state, true[2], SEED_GRADIENT * at.walk)
        assert_each(
            "grad_psi", 1, of_psi, true[3], PSI_GRADIENT * at.walk, floor=noise * max(1.0, at.largest_logit) ** 0.5
        )
        assert_each("grad_seed", 1, of_seed, true[4], SEED_GRADIENT * at.walk)
        assert_within("grad_mu", of_mu, true[5], at.gate, floor=at.gate * scale)
        assert_within("grad_beta", of_beta, true[6], at.gate, floor=at.gate * scale)
        assert of_bias.dtype == self.bias.dtype
        assert_each("grad_bias", 0, of_bias, true[7], PSI_GRADIENT * at.walk, floor=noise)


def _grid() -> list[object]:
    rows = []
    for number, case in enumerate(FEW):
        for bias in BIASES:
            for dtype in ("fp32", "fp64", "bf16", "fp16"):
                if dtype in ("bf16", "fp16") and (bias not in ("normal", "holes") or number % 2):
                    continue
                quick = dtype == "fp32" and bias != "gaussian" and number in (1, 3)
                rows.append(
                    pytest.param(case, bias, dtype, id=f"{case}-{bias}-{dtype}", marks=[pytest.mark.smoke] * quick)
                )
    return rows


@pytest.mark.parametrize(("case", "bias", "dtype"), _grid())
def test_a_walk_with_a_bias_is_right(backend: str, case: Case, bias: str, dtype: str) -> None:
    """y, lse and six gradients, of a loss on both."""
    walk = Walk.make(case, bias, DTYPES[dtype])
    walk.check(walk.run(backend), walk.true())


@pytest.mark.parametrize("loss", ["lse", "state"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("regime", ["smooth", "one_hot"])
def test_a_loss_on_one_of_the_two(backend: str, regime: str, dtype: str, loss: str) -> None:
    """A loss on lse alone has its gradients, and none in state, seed and gates."""
    walk = Walk.make(Case(2, (7, 19), 16, 5, 1, regime), "normal", DTYPES[dtype], loss)
    ours = walk.run(backend)
    walk.check(ours, walk.true())
    if loss == "lse":
        assert not any(ours[n].any() for n in (2, 4, 5, 6))
        assert ours[3].any() and ours[7].any()


def test_lse_without_a_bias(backend: str) -> None:
    inputs = make(Case(2, (5, 13), 16, 5, 1))
    psi = inputs.psi[0].clone().requires_grad_()
    _, lse = random_walk(inputs.seed, psi, inputs.seed, 0.5, 0.5, backend=backend, return_lse=True)
    of_lse = normal(1, *lse.shape)
    (grad,) = torch.autograd.grad(lse, psi, of_lse)
    wide = psi.detach().double().requires_grad_()
    true = (wide.flatten(2).mT @ wide.flatten(2)).logsumexp(-1).view(lse.shape)
    at = Setting(frozenset({torch.float32}), 1, inputs.largest_logit)
    assert_within("lse", lse.detach(), true.detach(), 0.0, floor=at.walk)
    assert_each("grad_psi", 1, grad, torch.autograd.grad(true, wide, of_lse.double())[0], PSI_GRADIENT * at.walk)


CASCADE = Case(2, (5, 14), 16, 4, 3, "smooth")


def _biases(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(1 + t) * normal(20 + t, 2, 5, 14, dtype=torch.float64).to(dtype) for t in range(3)]


def _cascade(backend: str, bias: object, steps: bool = False) -> list[Tensor]:
    """The state (or states) and the gradients of seed, ψ, μ, β and of what requires one in bias."""
    inputs = make(CASCADE)
    leaves = [x.requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    y = cascaded_random_walk(seed, psi, mu, beta, bias=bias, backend=backend, return_steps=steps)  # type: ignore[arg-type]
    states = list(y) if steps else [y]
    given = [b for b in (bias if isinstance(bias, list) else [bias]) if isinstance(b, Tensor) and b.requires_grad]
    loss = sum((x * (t + 1) * inputs.grad).sum() for t, x in enumerate(states))
    return [*(x.detach() for x in states), *torch.autograd.grad(loss, [*leaves, *given])]


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
def test_a_cascade_with_a_bias_in_some_walks(backend: str, steps: bool) -> None:
    first, _, third = (b.requires_grad_() for b in _biases())
    ours = _cascade(backend, [first, None, third], steps)
    inputs = make(CASCADE).to(torch.float64)
    leaves = [x.requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    bias = [first.detach().double().requires_grad_(), None, third.detach().double().requires_grad_()]
    states, _ = dense(leaves[0], leaves[1:4], *leaves[4:], bias=bias)
    states = states if steps else states[-1:]
    loss = sum((x * (t + 1) * inputs.grad).sum() for t, x in enumerate(states))
    true = [*states, *torch.autograd.grad(loss, [*leaves, bias[0], bias[2]])]
    at = Setting(frozenset({torch.float32}), 3, inputs.largest_logit + 12)
    names = [*["state"] * len(states), "seed", *["psi"] * 3, "mu", "beta", "bias", "bias"]
    for name, a, b in zip(names, ours, true, strict=True):
        factor = {"state": 1, "seed": SEED_GRADIENT, "mu": 100, "beta": 100}.get(name, PSI_GRADIENT)
        assert_each(
            name, 0 if a.dim() < 4 else 1, a, b.detach(), factor * at.walk, floor=1e-5 * (name in ("psi", "bias"))
        )


def test_the_forms_of_a_bias_are_one(backend: str) -> None:
    """A tensor for all walks, one for all images, a tensor of T, a tuple; any strides, any dtype that holds the numbers."""
    apart = [b.bfloat16().float() for b in _biases()]
    same = [apart[0]] * 3
    stacked = torch.stack(apart, -1).movedim(-1, 0)
    pairs = [
        (apart[0], same),
        (stacked, apart),
        ([b.bfloat16() for b in apart], apart),
        (tuple(apart), apart),
        ([b.mT.contiguous().mT for b in apart], apart),
        (apart[0][:1], [apart[0][:1].repeat(2, 1, 1)] * 3),
        ([None, None, None], None),
    ]
    for one, other in pairs:
        assert all(torch.equal(a, b) for a, b in zip(_cascade(backend, one), _cascade(backend, other), strict=True))


def test_the_gradient_has_the_form_of_the_bias(backend: str) -> None:
    """One for all walks and images gets the sum of their gradients, in its own shape and dtype."""
    shared = _biases()[0][:1].clone().requires_grad_()
    apart = [shared.detach().repeat(2, 1, 1).requires_grad_() for _ in range(3)]
    *_, ours = _cascade(backend, shared)
    true = sum(x.sum(0, keepdim=True) for x in _cascade(backend, apart)[-3:])
    assert ours.shape == shared.shape
    torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-5)
    narrow = shared.detach().half().requires_grad_()
    assert _cascade(backend, narrow)[-1].dtype == torch.float16


@pytest.mark.needs(dtype="fp64")
def test_a_wide_bias_makes_the_sums_wide(backend: str) -> None:
    """2^-30 of a bias is nothing beside a logit in fp32."""
    inputs = make(Case(1, (9,), 4, 2, 1, "smooth"))
    bias = torch.full((1, 9), 2.0**-30, dtype=torch.float64)
    _, lse = random_walk(inputs.seed, inputs.psi[0], inputs.seed, 0.5, 0.5, bias=bias, backend=backend, return_lse=True)
    _, none = random_walk(
        inputs.seed, inputs.psi[0], inputs.seed, 0.5, 0.5, bias=0 * bias, backend=backend, return_lse=True
    )
    assert lse.dtype == torch.float64
    torch.testing.assert_close(lse - none, torch.full_like(lse, 2.0**-30), rtol=1e-3, atol=0)


@pytest.mark.needs(dtype="fp64")
@pytest.mark.parametrize("nodes", [1, 5, 66])
def test_gradcheck(backend: str, nodes: int) -> None:
    """Through both results, with a column that is gone."""
    inputs = make(Case(2, (nodes,), 3, 2, 1, "smooth"), torch.float64)
    bias = normal(3, 2, nodes, dtype=torch.float64)
    if nodes > 1:
        bias[0, nodes // 2] = -torch.inf

    def run(state: Tensor, psi: Tensor, seed: Tensor, mu: Tensor, beta: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return random_walk(state, psi, seed, mu, beta, bias=bias + shift, backend=backend, return_lse=True)

    arguments = (inputs.grad, inputs.psi[0], inputs.seed, inputs.mu, inputs.beta, torch.zeros_like(bias))
    leaves = [x.requires_grad_() for x in arguments]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=nodes > 9, **GRADCHECK)


@pytest.mark.smoke
@pytest.mark.parametrize("place", ["first", "last", "own image"])
def test_a_row_without_a_column_is_nan_and_its_lse_is_minus_infinity(backend: str, place: str) -> None:
    """As in torch: every column of image 0 is gone, and image 1 keeps its bits."""
    inputs = make(Case(2, (70,), 8, 3, 1, "smooth"))
    bias = normal(4, 2, 70)
    fields = (inputs.seed, inputs.psi[0], inputs.seed)
    run = partial(random_walk, *fields, 0.5, 0.5, backend=backend, return_lse=True)
    before = run(bias=bias)
    gone = bias.clone()
    gone[0] = -torch.inf
    if place != "own image":  # one column is left: every row is that node's scores
        gone[0, 0 if place == "first" else -1] = 3.0
    y, lse = run(bias=gone)
    assert torch.equal(y[1], before[0][1]) and torch.equal(lse[1], before[1][1])
    if place == "own image":
        assert y[0].isnan().all() and (lse[0] == -torch.inf).all()
    else:
        left = inputs.seed[0][:, :1] if place == "first" else inputs.seed[0][:, -1:]
        assert_within("state", y[0], 0.25 * left + 0.75 * inputs.seed[0], 4 * FLOOR[torch.float32])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("node", [0, 37, 130])
def test_a_bad_bias_spreads_as_the_formula_says(backend: str, node: int, value: float) -> None:
    inputs = make(Case(2, (131,), 8, 3, 1, "clusters"))
    bias = normal(4, 2, 131)
    fields = (inputs.seed, inputs.psi[0], inputs.seed)
    run = partial(random_walk, *fields, 0.5, 0.5, backend=backend, return_lse=True)
    before = run(bias=bias)
    bias[0, node] = value
    y, lse = run(bias=bias)
    assert not y[0].isfinite().any() and not lse[0].isfinite().any()
    assert torch.equal(y[1], before[0][1]) and torch.equal(lse[1], before[1][1])


def test_gradients_for_one_input_are_those_among_all(backend: str) -> None:
    """Whoever wants the gradient of the bias alone pays for no other, and gets the same bits."""
    biases = [b.requires_grad_() for b in _biases()]
    among = _cascade(backend, biases)[-3:]
    inputs = make(CASCADE)
    y = cascaded_random_walk(inputs.seed, inputs.psi, inputs.mu, inputs.beta, bias=biases, backend=backend)
    alone = torch.autograd.grad(y, biases[1], inputs.grad)[0]
    assert torch.equal(alone, among[1])
