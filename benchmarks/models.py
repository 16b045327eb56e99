"""Table 4 of the paper: the time of each part of DifNet-50, and of Sim-Deeplab-101, on one image of 505²."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, conv2d

from benchmarks.cascade import replay_of
from benchmarks.cases import CASES
from benchmarks.clock import Call
from benchmarks.device import Device
from benchmarks.peers import CONTENDERS, Setting, cascade_of, dense_walk
from benchmarks.projection import GRADIENT_BOUND
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest
from benchmarks.truth import Verdict, logit_bound, worst_of

# seconds in Table 4 of the paper, on one GTX 1080; its text adds that the backpropagation of DifNet-50 takes about
# 1.3 times that of Sim-Deeplab-101
PAPER_DEVICE = "GTX 1080"
PAPER = {"seed_branch": 0.018, "similarity_branch": 0.015, "ours": 0.006, "sim_deeplab101": 0.036}
PAPER["difnet50"] = PAPER["seed_branch"] + PAPER["similarity_branch"] + PAPER["ours"]
PAPER_BACKWARD_RATIO = 1.3
SIDE, REHEARSED_SIDE = 505, 65
GRID = CASES["eval505"]
# the parts, then the diffusion (Ψ and five walks) by each contender
PARTS = {
    "seed_branch": "DifNet-50, seed branch",
    "similarity_branch": "DifNet-50, similarity branch",
    "difnet50": "DifNet-50",
    "sim_deeplab101": "Sim-Deeplab-101",
    "diffusion_replayed": "Diffusion, difnet_kernels, by graph replay",
}


@dataclass(frozen=True)
class ModelsTask(Task):
    """Rows of Table 4; contenders name parts of the models, or contenders of the diffusion.

    forward is inference; forward+backward is a step of training without loss and update: statistics of the batch, and
    gradients of the part's parameters and of whatever it gets from another part.
    """

    def measure(self, on: Device) -> list[Row]:
        networks = Networks(self, on)
        rounds = (3, 200) if on.on_gpu and not on.rehearsed else (2, 20)  # seconds each on a CPU
        entrants = {
            name: Entrant(self.title_of(name), networks.why_not(name), partial(networks.prepare, name))
            for name in self.contenders
        }
        return contest(self, entrants, on, rounds=rounds)

    def title_of(self, name: str) -> str:
        return PARTS.get(name) or f"Diffusion, {CONTENDERS[name].title}"


class Networks:
    """DifNet-50 and Sim-Deeplab-101 with an image, what the branches make of it, and the truth of its diffusion."""

    def __init__(self, task: ModelsTask, on: Device) -> None:
        from models.experiments.timings import normalise
        from models.networks.builder import build_model

        torch.manual_seed(0)
        self.on, self.training = on, task.direction != "forward"
        dtype = DTYPES[task.dtype]

        def ready(x: Tensor) -> Tensor:
            return x.to(on.torch, dtype, memory_format=torch.channels_last)

        side = REHEARSED_SIDE if on.rehearsed else SIDE
        self.image = ready(torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(3)) - 0.5)
        names = ("difnet50", "sim_deeplab101") if not on.rehearsed else ("difnet_tiny", "sim_deeplab_tiny")
        networks: list[Any] = [build_model(name).to(on.torch, dtype) for name in names]
        for network in networks:
            network.to(memory_format=torch.channels_last)
            normalise(network, self.image)
            network.train(self.training)
        self.difnet, self.baseline = networks
        with torch.no_grad():
            self.seed, levels = self.seed_branch(), self.similarity_branch()
        self.levels = [self.image, *levels]
        self.grad = ready(torch.randn(self.seed.shape, generator=torch.Generator().manual_seed(4)))
        for made in (self.seed, *levels):  # the image is given, not computed
            made.requires_grad_(self.training)
        self.setting = Setting(GRID, dtype, on, task.direction)
        self._truth: DiffusionTruth | None = None

    def why_not(self, name: str) -> str | None:
        if name == "diffusion_replayed":
            return None if self.on.on_gpu else "graphs are replayed on a GPU only"
        return CONTENDERS[name].why_not(self.setting) if name in CONTENDERS else None

    def prepare(self, name: str) -> tuple[Call, Verdict | None]:
        if name == "diffusion_replayed":
            call, verdict = self._diffusion("ours")
            return replay_of(call, self.on, exact=True)[0], verdict
        if name in CONTENDERS:
            return self._diffusion(name)
        part = self._call(getattr(self, name), self.baseline if name == "sim_deeplab101" else self.difnet)
        part()
        return part, None

    def seed_branch(self) -> Tensor:
        scores = self.difnet.seed_branch(self.image)
        return self.difnet.importance(scores) * scores

    def similarity_branch(self) -> tuple[Tensor, ...]:
        return self.difnet.similarity_branch(self.image)

    def difnet50(self) -> Tensor:
        return self.difnet(self.image)

    def sim_deeplab101(self) -> Tensor:
        return self.baseline(self.image)

    def _diffusion(self, name: str) -> tuple[Callable[[], list[Tensor]], Verdict]:
        contender, walk = CONTENDERS[name], self.difnet.walk
        cascade = contender.build(self.setting)
        asked = [self.seed, *self.levels[1:], *walk.parameters()]

        def call() -> list[Tensor]:
            with torch.set_grad_enabled(self.training):
                state = cascade(self.seed, walk.embeddings(self.levels, self.seed.shape[2:]), walk.mu, walk.beta)
            return [state.detach(), *(torch.autograd.grad(state, asked, self.grad) if self.training else ())]

        self._truth = self._truth or DiffusionTruth(walk, self.seed, self.levels, self.grad if self.training else None)
        return call, self._truth.judge(call(), contender.fp32_logits)

    def _call(self, part: Callable[[], Tensor | tuple[Tensor, ...]], owner: nn.Module) -> Call:
        def forward() -> None:
            with torch.no_grad():
                part()

        def both() -> None:
            outputs = part()
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            owner.zero_grad(set_to_none=True)

        return both if self.training else forward


class DiffusionTruth:
    """Ψ1 and the dense walks in fp64, and by autograd the gradients of seed, levels and projections; apart from the
    package, but for the epilogue."""

    def __init__(self, walk: Any, seed: Tensor, levels: Sequence[Tensor], grad: Tensor | None) -> None:
        twin, given = copy.deepcopy(walk).double(), levels
        seed, *levels = (x.detach().double().requires_grad_(x.requires_grad) for x in (seed, *levels))
        with torch.no_grad():
            made = walk.embeddings(given, seed.shape[2:])
        psi = []
        with torch.set_grad_enabled(grad is not None):
            for project, level, rounded in zip(twin.psi, levels, made, strict=True):
                z = conv2d(level, project.weight[..., None, None], project.bias)
                true = adaptive_max_pool2d(project.norm(z), seed.shape[2:])
                psi.append(true + (rounded - true).detach())  # the walks' truth is that of the embeddings as they are
            state = cascade_of(dense_walk)(seed, psi, twin.mu, twin.beta)
        self.largest_logit = max(p.detach().square().sum(1).max().item() for p in psi)
        self.walks, self.dtype, self.state = len(psi), given[0].dtype, state.detach()
        self.grads: dict[int, tuple[str, Tensor]] = {}
        if grad is not None:
            asked = [seed, *levels[1:], *twin.parameters()]
            names = ["seed", *(f"level {t}" for t in range(1, len(levels))), *(n for n, _ in twin.named_parameters())]
            found = torch.autograd.grad(state, asked, grad.double())
            judged = [name for name in names if name.endswith("weight") and "norm" not in name]
            judged += names[: len(levels)]
            self.grads = {i: (names[i], found[i]) for i in range(len(names)) if names[i] in judged}

    def judge(self, made: Sequence[Tensor], fp32_logits: bool) -> Verdict:
        """Each relative to its largest value. Gradients but for one element in a thousand: where two pixels of a window
        share its maximum to rounding, either may get the gradient."""
        bound = logit_bound(self.largest_logit, self.walks, self.dtype, fp32_logits)
        verdicts = [Verdict(_apart(made[0], self.state, 1.0), bound, "output")]
        for place, (name, true) in self.grads.items():
            error = _apart(made[1 + place], true, 0.999)
            verdicts.append(Verdict(error, 8 * bound + GRADIENT_BOUND, f"gradient of {name}"))
        return worst_of(verdicts)


def _apart(ours: Tensor, true: Tensor, share: float) -> float:
    apart = (ours.double() - true).abs().flatten()
    error = (apart.kthvalue(math.ceil(share * len(apart))).values / true.abs().max()).item()
    return error if bool(apart.isfinite().all()) else math.inf
