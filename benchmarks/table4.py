"""Table 4 of the paper: the time of each part of DifNet-50, and of Sim-Deeplab-101, on one image of 505²."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, conv2d

from benchmarks.cases import CASES
from benchmarks.clock import Call
from benchmarks.correctness import Truth, Verdict, judge, output_bound, truth_of, worst_of
from benchmarks.inputs import Inputs
from benchmarks.peers import CONTENDERS, Setting
from benchmarks.psi import GRADIENT_BOUND
from benchmarks.replay import captured
from benchmarks.tasks import DTYPES, UNAVAILABLE, Entrant, Row, Task, contest

# seconds in Table 4 of the paper, on one GTX 1080; its text adds that the backpropagation of DifNet-50 takes about
# 1.3 times that of Sim-Deeplab-101
PAPER_DEVICE = "GTX 1080"
PAPER = {"seed_branch": 0.018, "similarity_branch": 0.015, "ours": 0.006, "sim_deeplab101": 0.036}
PAPER["difnet50"] = PAPER["seed_branch"] + PAPER["similarity_branch"] + PAPER["ours"]
PAPER_BACKWARD_RATIO = 1.3
SIDE = 505
# the parts, then the diffusion (Ψ and five walks) by each contender
PARTS = {
    "seed_branch": "DifNet-50, seed branch",
    "similarity_branch": "DifNet-50, similarity branch",
    "difnet50": "DifNet-50, branches one after the other",
    "difnet50_overlapped": "DifNet-50, branches side by side",
    "sim_deeplab101": "Sim-Deeplab-101",
    "diffusion_replayed": "Diffusion, difnet_kernels, by graph replay",
}
GRID = CASES["eval505"]


@dataclass(frozen=True)
class Table4Task(Task):
    """Rows of Table 4; contenders name parts of the models, or contenders of the diffusion.

    forward is inference; forward+backward is a step of training without loss and update: statistics of the batch, and
    gradients of the part's parameters and of whatever it gets from another part.
    """

    def measure(self, device: str) -> list[Row]:
        titles = {name: PARTS.get(name) or f"Diffusion, {CONTENDERS[name].title}" for name in self.contenders}
        if importlib.util.find_spec("models") is None or importlib.util.find_spec("models.networks.builder") is None:
            reason = "models not available"
            return [self.row(name, title, status=UNAVAILABLE, reason=reason) for name, title in titles.items()]
        networks = Networks(self, device)
        rounds = (2, 20) if device == "cpu" else (3, 200)  # seconds each on a CPU
        entrants = {
            name: Entrant(title, networks.why_not(name), networks.preparing(name)) for name, title in titles.items()
        }
        return contest(self, entrants, device, rounds=rounds)


class Networks:
    """DifNet-50 and Sim-Deeplab-101 with an image, what the branches make of it, and the truth of its diffusion."""

    def __init__(self, task: Table4Task, device: str) -> None:
        from models.experiments.timings import normalise
        from models.networks.builder import build_model

        torch.manual_seed(0)
        self.dtype, self.device, self.direction = DTYPES[task.dtype], device, task.direction
        image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) - 0.5
        self.image = image.to(device, self.dtype, memory_format=torch.channels_last)
        self.difnet, self.baseline = (
            build_model(name).to(device, self.dtype, memory_format=torch.channels_last)
            for name in ("difnet50", "sim_deeplab101")
        )
        training = self.direction != "forward"
        for network in (self.difnet, self.baseline):
            normalise(network, self.image)
            network.train(training)
        with torch.no_grad():
            self.seed, levels = self.seed_branch(), self.similarity_branch()
            self.levels = [self.image, *levels]
            walk = self.difnet.walk
            psi = walk.embeddings(self.levels, self.seed.shape[2:])
            grad = torch.randn(self.seed.shape, generator=torch.Generator().manual_seed(4))
            grad = grad.to(device, self.dtype, memory_format=torch.channels_last)
            self.inputs = Inputs(self.seed, psi, walk.mu, walk.beta, grad)
        for made in (self.seed, *levels):  # the image is given, not computed
            made.requires_grad_(training)
        self._truth: Truth | None = None
        self._levels_truth: list[Tensor] = []

    def why_not(self, name: str) -> str | None:
        if name == "difnet50_overlapped":
            return "branches overlap on a GPU only" if self.device == "cpu" else None
        if name == "diffusion_replayed":
            return "graphs are replayed on a GPU only" if self.device == "cpu" else None
        return CONTENDERS[name].why_not(self._setting()) if name in CONTENDERS else None

    def preparing(self, name: str) -> Callable[[], tuple[Call, Verdict | None]]:
        if name in CONTENDERS:
            return lambda: self._diffusion(name)
        if name == "diffusion_replayed":
            return self._diffusion_replayed

        def prepare() -> tuple[Call, None]:
            owner = self.baseline if name == "sim_deeplab101" else self.difnet
            call = self._call(getattr(self, name), owner)
            call()
            return call, None

        return prepare

    def seed_branch(self) -> Tensor:
        scores = self.difnet.seed_branch(self.image)
        return self.difnet.importance(scores) * scores

    def similarity_branch(self) -> tuple[Tensor, ...]:
        return self.difnet.similarity_branch(self.image)

    def difnet50(self) -> Tensor:
        from models.networks.deeplab import upsample

        seed, levels = self.seed_branch(), (self.image, *self.similarity_branch())
        psi = self.difnet.walk.embeddings(levels, seed.shape[2:])
        return upsample(self.difnet.walk.diffuse(seed, psi), self.image)

    def difnet50_overlapped(self) -> Tensor:
        return self.difnet(self.image)

    def sim_deeplab101(self) -> Tensor:
        return self.baseline(self.image)

    def _diffusion_replayed(self) -> tuple[Call, Verdict]:
        call, verdict = self._diffusion("ours")
        called = [x.clone() for x in call()]
        graph, made = captured(call)
        graph.replay()
        if not all(torch.equal(a, b) for a, b in zip(called, made, strict=True)):
            raise RuntimeError("replay gives other bits than the call that was captured")
        return graph.replay, verdict

    def _diffusion(self, name: str) -> tuple[Callable[[], list[Tensor]], Verdict]:
        contender, walk, training = CONTENDERS[name], self.difnet.walk, self.direction != "forward"
        cascade = contender.build(self._setting())
        levels = self.levels[1:]

        def diffusion() -> tuple[Tensor, list[Tensor]]:
            between = [*walk.embeddings(self.levels, self.seed.shape[2:]), walk.mu, walk.beta]
            return cascade(self.seed, between[:-2], *between[-2:]), between

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [diffusion()[0]]

        def both() -> list[Tensor]:
            asked = [self.seed, *levels, *walk.parameters()]
            return list(torch.autograd.grad(diffusion()[0], asked, self.inputs.grad))

        self._truth = self._truth or truth_of(self.inputs, backward=training)
        with torch.set_grad_enabled(training):
            state, between = diffusion()
        call = both if training else forward
        call()
        if not training:
            return call, judge(self.inputs, self._truth, state, None, fp32_logits=contender.fp32_logits)
        grads = list(torch.autograd.grad(state, [self.seed, *between, *levels], self.inputs.grad))
        of_walks, of_levels = grads[: -len(levels)], grads[-len(levels) :]
        walks = judge(self.inputs, self._truth, state, of_walks, fp32_logits=contender.fp32_logits)
        self._levels_truth = self._levels_truth or levels_truth(walk, self.levels, self._truth, self.seed.shape[2:])
        bound = 8 * output_bound(self.inputs, self._truth, contender.fp32_logits) + GRADIENT_BOUND
        return call, worst_of([walks, *judge_levels(of_levels, self._levels_truth, bound)])

    def _call(self, part: Callable[[], Tensor | tuple[Tensor, ...]], owner: nn.Module) -> Call:
        def forward() -> None:
            with torch.no_grad():
                part()

        def both() -> None:
            outputs = part()
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            owner.zero_grad(set_to_none=True)

        return forward if self.direction == "forward" else both

    def _setting(self) -> Setting:
        return Setting(GRID, self.dtype, self.device, self.direction)


def levels_truth(walk: nn.Module, levels: list[Tensor], truth: Truth, grid: Sequence[int]) -> list[Tensor]:
    """Gradients of the levels but the image in fp64: torch's layers (Ψ1) under the true gradients of the embeddings."""
    assert truth.grads is not None
    found = []
    for project, level, grad_psi in zip(walk.psi[1:], levels[1:], truth.grads[2:-2], strict=True):
        f = level.detach().double().requires_grad_()
        z = conv2d(f, project.weight.detach().double()[..., None, None], project.bias.detach().double())
        psi = adaptive_max_pool2d(copy.deepcopy(project.norm).double()(z), grid)
        found += torch.autograd.grad(psi, f, grad_psi.mT.reshape(psi.shape))
    return found


def judge_levels(found: list[Tensor], true: list[Tensor], bound: float) -> list[Verdict]:
    """Relative to the largest value, and apart from one element in a thousand: where two pixels of a window share its
    maximum to rounding, either may get the gradient."""
    verdicts = []
    for t, (ours, right) in enumerate(zip(found, true, strict=True), start=1):
        apart = (ours.double() - right).abs().flatten()
        error = (apart.kthvalue(math.ceil(0.999 * len(apart))).values / right.abs().max()).item()
        error = error if bool(apart.isfinite().all()) else math.inf
        verdicts.append(Verdict(error, bound, f"gradient of level {t}"))
    return verdicts
