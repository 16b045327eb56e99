"""What only a card can show: every launch row, sums on matrix units, streams, graphs, offsets past 2³¹.

What every backend promises is tested on a card by the other files. Without one there is nothing to collect here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import PsiProjection, cascaded_random_walk
from difnet_kernels.backends import BACKENDS
from difnet_kernels.problem import Problem
from tests.support.capability import device_of
from tests.support.cases import DTYPES, Case, Inputs, make
from tests.support.truth import assert_forward, assert_gradients, assert_same, both, truth_of

# backends that run on a card alone, in both directions, where there is one
CARDS = [
    name
    for name, backend in BACKENDS.items()
    if backend.cascade_backward is not None and device_of(name) == "cuda" and backend.unusable() is None
]
SMALL = Case(2, (613,), 64, 21, 2)
# (D, K): together they reach every launch row that serves an architecture
WIDTHS = ((64, 21), (16, 5), (128, 60), (256, 60), (128, 127), (64, 150))
SETTINGS = (("fp32", "high"), ("fp32", "medium"), ("bf16", "high"), ("fp16", "high"))


def rows(cards: Sequence[str]) -> list[tuple[str, int, int]]:
    """The widths of each card's backend, but those that it refuses."""
    asked = Problem.of(torch.empty(1, 1, 1), [torch.empty(1, 1, 1)], "high")
    asked = replace(asked, device=torch.device("cuda"))
    widths = [(card, embed, classes) for embed, classes in WIDTHS for card in cards]
    return [
        (card, embed, classes)
        for card, embed, classes in widths
        if BACKENDS[card].refuses(replace(asked, embeds=(embed,), classes=classes)) is None
    ]


def on_card(inputs: Inputs) -> Inputs:
    psi = [p.cuda() for p in inputs.psi]
    return Inputs(inputs.seed.cuda(), psi, inputs.mu.cuda(), inputs.beta.cuda(), inputs.grad.cuda())


def step(inputs: Inputs, backend: str) -> Callable[[], list[Tensor]]:
    """A call that gives the state and all gradients, and can be captured: leaves and their gradient stay where they are."""
    leaves = [x.detach().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]

    def call() -> list[Tensor]:
        state = cascaded_random_walk(leaves[0], leaves[1:-2], *leaves[-2:], backend=backend)
        return [state.detach(), *torch.autograd.grad(state, leaves, inputs.grad)]

    return call


def captured(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = call()
    return graph, made


def diffuse(nodes: int, device: str, backend: str) -> tuple[float, float]:
    """Error per class of one fp32 walk whose rows weigh all nodes alike, at 64 of them; and its bound."""
    chance = torch.Generator().manual_seed(5)
    seed = torch.rand(1, 21, nodes, generator=chance).to(device)
    psi = torch.randn(1, 64, nodes, generator=chance).mul(0.1).to(device)
    y = cascaded_random_walk(seed, [psi], [1.0], [1.0], backend=backend)
    rows = torch.linspace(0, nodes - 1, 64, device=device).long()
    points, s = psi[0].double().mT, seed[0].double().mT
    true = torch.softmax(points[rows] @ points.mT, -1) @ s
    error = ((y[0].mT[rows].double() - true).abs().amax(0) / true.abs().amax(0)).max().item()
    return error, 4 * 2.0**-24 * points.square().sum(1).max().item() + 2e-6


if CARDS:
    pytestmark = pytest.mark.gpu

    @pytest.mark.parametrize(("dtype", "precision"), SETTINGS)
    @pytest.mark.parametrize(("card", "embed", "classes"), rows(CARDS))
    def test_every_launch_row_is_right(card, embed, classes, dtype, precision):
        for nodes in (613, 29):
            inputs = on_card(make(SMALL.with_(embed=embed, classes=classes, grid=(nodes,)), DTYPES[dtype]))
            result, truth = both(inputs, card, precision), truth_of(inputs)
            assert_forward(result.state, inputs, truth, precision)
            assert_gradients(result, inputs, truth, precision)

    @pytest.mark.parametrize("card", CARDS)
    @pytest.mark.parametrize("nodes", [4096, 10201, 16384])
    def test_sums_over_thousands_of_nodes_do_not_drift(card, nodes):
        """A matrix unit may cut its sums off instead of rounding them, and a long sum adds that up."""
        error, bound = diffuse(nodes, "cuda", card)
        assert error <= bound

    @pytest.mark.parametrize("card", CARDS)
    def test_work_on_a_side_stream_waits_for_its_inputs_there(card):
        call = step(on_card(make(SMALL)), card)
        here = [x.clone() for x in call()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(10_000_000)
            there = [x.clone() for x in call()]
        torch.cuda.current_stream().wait_stream(side)
        assert_same(here, there)

    @pytest.mark.parametrize("card", CARDS)
    def test_two_cascades_at_once_share_nothing_that_they_write(card):
        calls = [step(on_card(make(SMALL, number=number)), card) for number in (0, 1)]
        right = [[x.clone() for x in call()] for call in calls]
        streams = [torch.cuda.Stream() for _ in calls]
        torch.cuda.synchronize()
        for _ in range(20):
            made = []
            for stream, call in zip(streams, calls, strict=True):
                with torch.cuda.stream(stream):
                    made.append(call())
            torch.cuda.synchronize()
            for ours, theirs in zip(right, made, strict=True):
                assert_same(ours, theirs)

    @pytest.mark.parametrize("card", CARDS)
    def test_a_replay_reads_new_inputs_and_equals_a_call(card):
        inputs, other = (on_card(make(SMALL, number=number)) for number in (0, 1))
        call = step(inputs, card)
        graph, made = captured(call)
        for old, new in zip((inputs.seed, *inputs.psi), (other.seed, *other.psi), strict=True):
            old.copy_(new)
        inputs.mu.mul_(0.5)
        graph.replay()
        assert_same([x.clone() for x in made], call())

    @pytest.mark.parametrize("card", CARDS)
    def test_gates_given_as_numbers_are_captured(card):
        inputs = on_card(make(SMALL))

        def call() -> list[Tensor]:
            return [cascaded_random_walk(inputs.seed, inputs.psi, [0.25, 0.25], [0.5, 0.5], backend=card)]

        graph, made = captured(call)
        made[0].fill_(torch.nan)
        graph.replay()
        assert_same([made[0].clone()], call())

    @pytest.mark.parametrize("card", CARDS)
    def test_a_projection_repeats_its_bits_at_sizes_of_training(card):
        """Gradients are summed in parts there; a missing barrier shows once in many runs."""
        torch.manual_seed(3)
        for channels, side, grid in ((3, 321, 41), (256, 81, 41)):
            layer = PsiProjection(channels, 64).cuda()
            x = torch.randn(16, channels, side, side, device="cuda").bfloat16().requires_grad_(channels > 3)
            asked = [*([x] if channels > 3 else []), *layer.parameters()]

            def run(layer=layer, x=x, asked=asked, grid=grid) -> list[Tensor]:
                psi = layer(x, (grid, grid), backend=card)
                return [psi.detach(), *torch.autograd.grad(psi, asked, torch.ones_like(psi))]

            first = run()
            for _ in range(50):
                assert_same(first, run())

    @pytest.mark.parametrize("card", CARDS)
    def test_offsets_past_two_to_the_31(card):
        """The last image of a batch with more numbers than that has the bits that it has by itself."""
        if torch.cuda.mem_get_info()[0] < 40 * 2**30:
            pytest.xfail("takes about 40 GiB of the card")
        images = 2**31 // (64 * 1024) + 2
        psi = torch.randn(images, 64, 1024, device="cuda", dtype=torch.bfloat16).mul_(0.35).requires_grad_()
        seed = torch.randn(images, 5, 1024, device="cuda", dtype=torch.bfloat16)
        found = []
        for part in (slice(None), slice(-1, None)):
            y = cascaded_random_walk(seed[part], [psi[part]], [0.5], [0.5], backend=card)
            grad = torch.autograd.grad(y, psi, torch.ones_like(y))[0]
            found.append([y.detach()[-1].clone(), grad[-1].clone()])
            del y, grad
        assert bool((found[0][0] != 0).any())
        assert_same(*found)
