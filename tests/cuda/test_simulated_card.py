"""The way from Python to the kernels that only a card would take: torch's operators, requests, workspaces and launches, run on
simulated cards."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import random_walk
from difnet_kernels.backends import BACKENDS, cuda
from tests.cuda import simulated
from tests.cuda.projected import assert_right, inputs_of, truth, walk_of
from tests.support.cases import Case, Inputs, make, normal
from tests.support.tolerances import assert_within
from tests.support.truth import assert_forward, assert_gradients, assert_same, both, forward, truth_of

SMALL = Case(2, (70,), 64, 21, 2)
PROCESSORS, RESIDENT = 4, 2  # of the first card; each has one more than the one before


class Cards:
    """The cards, and the counters of every call, which a launch has to leave at zero."""

    def __init__(self) -> None:
        self.runtime = simulated.runtime()
        self.counters: list[Tensor] = []
        self.set()

    def set(self, count: int = 1, current: int = 0, room: int = 1 << 20, capturing: bool = False, of: int = 0) -> None:
        """`of`: the card on which the tensors lie."""
        self.runtime.simulated_set(count, current, room, capturing)
        ctypes.c_int32.in_dll(self.runtime, "simulated_device").value = of

    def launches(self) -> list[tuple[int, int, int]]:
        """Device, blocks and stream of each since the last `set`."""
        to = (ctypes.c_int64 * 3)()
        found = []
        for number in range(self.runtime.simulated_launches()):
            self.runtime.simulated_launch(number, to)
            found.append((to[0], to[1], to[2]))
        return found

    def counters_for(self, device: torch.device, size: int) -> Tensor:
        self.counters.append(torch.zeros(size, dtype=torch.int32))
        return self.counters[-1]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cards]:
    """backend="cuda" for tensors of the CPU."""
    cards = Cards()
    for name in simulated.OPERATORS:
        own = getattr(torch.ops.difnet_simulated, f"cuda_{name}")
        monkeypatch.setattr(torch.ops.difnet_kernels, f"cuda_{name}", own, raising=False)
    monkeypatch.setattr(cuda, "_counters_for", cards.counters_for)
    anything: dict[str, Callable[..., None]] = dict.fromkeys(
        ("unusable", "refuses", "refuses_projection"), lambda *problem: None
    )
    monkeypatch.setitem(BACKENDS, "cuda", replace(BACKENDS["cuda"], **anything))  # type: ignore[arg-type]
    yield cards
    assert not any(bool(one.any()) for one in cards.counters)


def strided(inputs: Inputs) -> Inputs:
    """Fields whose channels are neighbours, or every second number of a larger tensor."""
    seed = inputs.seed.mT.contiguous().mT
    return replace(inputs, seed=seed, psi=[torch.stack([p, p], -1)[..., 0] for p in inputs.psi])


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_the_cascade_and_its_gradients(cards: Cards, layout: str) -> None:
    inputs = make(SMALL, torch.float32)
    if layout == "strided":
        inputs = strided(inputs)
    result, true = both(inputs, "cuda"), truth_of(inputs)
    assert_forward(result.state, inputs, true)
    assert_gradients(result, inputs, true)
    assert cards.launches() == [(0, PROCESSORS * RESIDENT, 7000)] * 2


def test_a_state_a_bias_lse_and_what_is_not_wanted(cards: Cards) -> None:
    seed, state, psi = normal(1, 2, 3, 30), normal(2, 2, 3, 30), normal(3, 2, 6, 30)
    bias = normal(4, 2, 30)
    found = []
    for name, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (state, psi, bias)]
        y, lse = random_walk(
            leaves[0], leaves[1], seed.to(dtype), 0.25, 0.75, bias=leaves[2], backend=name, return_lse=True
        )
        (y.square().sum() + lse.sum()).backward()
        found.append([y.detach(), lse.detach(), *(x.grad for x in leaves)])
    for number, (ours, true) in enumerate(zip(*found, strict=True)):
        assert_within(str(number), ours, true, 1e-5)


def test_maps_to_scores(cards: Cards) -> None:
    sizes = (2, 3, (5, 6), 16, ((3, (11, 13)), (20, (5, 6))))
    walk, (seed, features) = walk_of(sizes, backend="cuda"), inputs_of(sizes)
    with torch.no_grad():
        steps = walk(seed, features, return_steps=True)
    assert [device for device, _, _ in cards.launches()] == [0], "one launch"
    assert_right(steps, *truth(walk, seed, features), {torch.float32})


def test_a_projection_and_its_gradients(cards: Cards) -> None:
    """Of a gradient that is one number everywhere, too: its strides are zero."""
    x, weight, slope = normal(1, 2, 20, 1, 9, 7), normal(2, 24, 20), normal(3, 24)
    project, back = torch.ops.difnet_kernels.projection_forward, torch.ops.difnet_kernels.projection_backward

    def made(name: str, dtype: torch.dtype, position: Tensor | None) -> list[Tensor]:
        peak, found, *moments = project(x.to(dtype), weight.to(dtype), slope.to(dtype), (1, 4, 3), True, name)
        given = [torch.full((), 0.5, dtype=dtype).expand(each.shape) for each in (peak, *moments)]
        at = found if position is None else position
        grads = back(*given, x.to(dtype), weight.to(dtype), at, None, moments[0], True, True, name)
        return [found, peak, *moments, *grads]

    ours = made("cuda", torch.float32, None)
    true = made("reference", torch.float64, ours[0])
    for number, (a, b) in enumerate(zip(ours[1:], true[1:], strict=True)):
        assert_within(str(number), a, b, 4e-5)


def test_each_card_is_asked_for_itself_and_the_current_one_stays(cards: Cards) -> None:
    """The launch goes where the tensors are, with as many blocks as that card holds."""
    inputs = make(SMALL, torch.float32)
    for device, current in ((0, 0), (2, 0), (1, 2), (0, 1)):
        cards.set(count=3, current=current, of=device)
        forward(inputs, "cuda")
        assert cards.launches() == [(device, (PROCESSORS + device) * RESIDENT, 7000 + device)]
        assert cards.runtime.simulated_current() == current


@pytest.mark.parametrize("case", [SMALL.with_(classes=30), SMALL.with_(embed=100)])
def test_the_first_call_may_be_captured(cards: Cards, case: Case) -> None:
    """A kernel that nobody has called is loaded then, which a capture does not allow by itself. No other test has called
    these."""
    inputs = make(case, torch.float32)
    cards.set(capturing=True)
    captured = forward(inputs, "cuda")
    cards.set()
    assert_same([captured], [forward(inputs, "cuda")])


def test_a_stream_with_few_multiprocessors(cards: Cards) -> None:
    inputs = make(SMALL, torch.float32)
    expected = forward(inputs, "cuda")
    cards.set(room=3)
    assert_same([forward(inputs, "cuda")], [expected])
    assert cards.launches() == [(0, 2, 7000)]
    cards.set(room=0)
    with pytest.raises(
        RuntimeError, match=r"cudaLaunchCooperativeKernel for a cascade of 2 walks, 2 images of 70 nodes"
    ):
        forward(inputs, "cuda")
    cards.set()
    assert_same([forward(inputs, "cuda")], [expected])


def test_a_card_that_is_not_there_is_named(cards: Cards) -> None:
    cards.set(count=1, of=5)
    with pytest.raises(RuntimeError, match="cudaDeviceGetAttribute"):
        forward(make(SMALL, torch.float32), "cuda")


@pytest.mark.parametrize("change", ["seed", "psi", "mu"])
def test_the_operator_itself_refuses_what_no_kernel_takes(cards: Cards, change: str) -> None:
    seed, psi, gates = normal(1, 1, 3, 30), normal(2, 1, 6, 30), torch.full((1,), 0.5)
    given: dict[str, Tensor] = {"seed": seed, "psi": psi, "mu": gates, change: normal(3, 2, 5, 4).double()}
    with pytest.raises(RuntimeError, match=f"difnet_kernels::cuda_cascade: .*{change}"):
        torch.ops.difnet_kernels.cuda_cascade_forward(
            None, given["seed"], [given["psi"]], [], given["mu"], gates, True, [seed.clone()], None, None, [],
            torch.zeros(99, dtype=torch.int32),
        )  # fmt: skip
