"""How long does Ψ take, from feature maps to embeddings on the grid of the seed, beside the torch layers it consists of?

Every contender runs in both memory layouts, contiguous and channels_last, and counts in the one that is faster for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.cases import CASES, Case
from benchmarks.clock import Call
from benchmarks.device import Device
from benchmarks.peers import uncompilable
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest
from benchmarks.truth import Verdict, worst_of
from difnet_kernels import psi_projection

# (channels, side) of the five maps that DifNet-50 compares, the image first, by the side of the image
LEVELS = {
    505: ((3, 505), (256, 127), (512, 64), (1024, 64), (2048, 64)),
    321: ((3, 321), (256, 81), (512, 41), (1024, 41), (2048, 41)),
}
# on whose grid the levels end
GRIDS = {321: CASES["train321_one"], 505: CASES["eval505"]}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TITLES = {
    "ours": "difnet_kernels",
    "layers": "conv, BN, pool",
    "compiled": "torch.compile of them",
    "folded": "BN folded into conv, pool",
}
ALL = tuple(range(5))
# relative to the largest value: a product over the channels, one affine map; sums over the image for a gradient
BOUND, GRADIENT_BOUND = 2e-5, 2e-4
# torch sums the statistics of a batch in fp32, one value after the other
PEERS_TRAINING_BOUND = 1e-3
BOUND_16_BITS = 4 * 2.0**-8

# embeddings, and gradients of what was learned
Made = tuple[list[Tensor], list[Tensor]]


def named(stems: Sequence[str]) -> tuple[str, ...]:
    """Contenders by what they are and the layout they run in."""
    return tuple(f"{stem}/{layout}" for stem in stems for layout in LAYOUTS)


class Level(nn.Module):
    """Ψ1 of one map, as torch modules: evaluation, or training with the statistics of the batch."""

    def __init__(self, channels: int, embed: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(channels, embed, kernel_size=1)
        self.norm = nn.BatchNorm2d(embed)

    def forward(self, features: Tensor) -> Tensor:
        return adaptive_max_pool2d(self.norm(self.conv(features)), self.grid)


@dataclass(frozen=True)
class Problem:
    """Layers with their feature maps, and the gradient of the loss with respect to each embedding.

    Features and weights lie on coarse binary lattices, so that z = W f is exact in fp32 in any order of summation:
    everyone finds the same maximum in every window, and gradients can be compared element by element.
    """

    levels: nn.ModuleList
    features: list[Tensor]
    grads: list[Tensor]

    @property
    def wanted(self) -> list[Tensor]:
        return [*(f for f in self.features if f.requires_grad), *self.levels.parameters()]

    def double(self) -> Problem:
        features = [f.detach().double().requires_grad_(f.requires_grad) for f in self.features]
        return Problem(copy.deepcopy(self.levels).double(), features, [g.double() for g in self.grads])

    def laid_out(self, layout: torch.memory_format) -> Problem:
        features = [f.detach().contiguous(memory_format=layout).requires_grad_(f.requires_grad) for f in self.features]
        levels = copy.deepcopy(self.levels).to(memory_format=layout)
        return Problem(levels, features, [g.contiguous(memory_format=layout) for g in self.grads])


def make_problem(
    case: Case, sizes: Sequence[tuple[int, int]], direction: str, dtype: torch.dtype, device: str
) -> Problem:
    """Levels of these (channels, side), pooled to the grid of the case."""
    draw = torch.Generator().manual_seed(7)

    def lattice(shape: Sequence[int], spacing: float) -> Tensor:
        # half a step away from zero, so that no product vanishes
        return (torch.randn(shape, generator=draw) / spacing).floor().add(0.5).mul(spacing)

    training = direction != "forward"
    made = [Level(channels, case.embed, case.grid) for channels, _ in sizes]
    with torch.no_grad():
        for level, (channels, _) in zip(made, sizes, strict=True):
            conv, norm = level.conv, level.norm
            assert conv.bias is not None and norm.running_mean is not None and norm.running_var is not None
            scale = 2.0 ** -round(channels.bit_length() / 2)  # a power of two near channels^-1/2
            conv.weight.copy_(lattice(conv.weight.shape, 0.125) * scale)
            conv.bias.copy_(lattice(conv.bias.shape, 0.125))
            for values in (norm.weight, norm.running_var):
                values.copy_(0.5 + torch.rand(case.embed, generator=draw))
            # slopes of either sign: where one is negative, the smallest product of a window becomes the largest
            norm.weight.mul_(torch.randint(0, 2, (case.embed,), generator=draw).mul(2).sub(1))
            for values in (norm.bias, norm.running_mean):
                values.copy_(torch.randn(case.embed, generator=draw))
    features = [lattice((case.batch, channels, side, side), 0.125) for channels, side in sizes]
    grads = [torch.randn(case.batch, case.embed, *case.grid, generator=draw) for _ in sizes]
    # nobody asks for the gradient of the image
    ready = [f.to(device, dtype).requires_grad_(training and f.shape[1] > 3) for f in features]
    levels = nn.ModuleList(made).train(training).to(device, dtype)
    return Problem(levels, ready, [g.to(device, dtype) for g in grads])


def as_run_by(stem: str, level: Level, backend: str | None = None) -> Callable[[Tensor], Tensor]:
    """Ψ of one map as this contender computes it; backend: of ours, None chooses."""
    conv, norm, grid = level.conv, level.norm, level.grid
    if stem == "ours":
        return lambda features: psi_projection(features, conv.weight.flatten(1), conv.bias, norm, grid, backend=backend)
    if stem == "folded":
        folded = fuse_conv_bn_eval(conv, norm)
        return lambda features: adaptive_max_pool2d(folded(features), grid)
    if stem == "compiled":
        # ten levels share one forward, two more than a compiler keeps by default before it quietly runs the rest eagerly
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        return torch.compile(level, dynamic=False)
    return level


def runner(stem: str, problem: Problem, direction: str, backend: str | None = None) -> Callable[[], Made]:
    """The call that is timed: embeddings, and in training the gradients of everything that was learned."""
    levels = [as_run_by(stem, cast(Level, level), backend) for level in problem.levels]

    def psi(features: Sequence[Tensor]) -> list[Tensor]:
        return [level(map_) for level, map_ in zip(levels, features, strict=True)]

    if direction == "forward":

        def forward() -> Made:
            with torch.no_grad():
                return psi(problem.features), []

        return forward
    wanted = problem.wanted

    def both() -> Made:
        made = psi(problem.features)
        return [p.detach() for p in made], list(torch.autograd.grad(made, wanted, problem.grads))

    return both


@dataclass(frozen=True)
class ProjectionTask(Task):
    """Ψ of some levels of an image of `side`²; forward is evaluation, forward+backward is a training step."""

    side: int = 321
    levels: tuple[int, ...] = ALL

    def __str__(self) -> str:
        which = "five" if self.levels == ALL else "C{}-S{}".format(*self.sizes[0])
        return f"{super().__str__()}-{which}"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [LEVELS[self.side][level] for level in self.levels]

    def measure(self, on: Device) -> list[Row]:
        problem = make_problem(self.case, self.sizes, self.direction, DTYPES[self.dtype], on.torch)
        twin = problem.double()
        truth = runner("layers", twin, self.direction)()
        del twin
        torch.compiler.reset()  # every shape compiled for itself, and no limit on how many
        entrants = {name: self._entrant(name, problem, truth, on) for name in self.contenders}
        return contest(self, entrants, on)

    def _entrant(self, name: str, problem: Problem, truth: Made, on: Device) -> Entrant:
        stem, layout = name.split("/")

        def prepare() -> tuple[Call, Verdict]:
            own = problem.laid_out(LAYOUTS[layout])
            run = runner(stem, own, self.direction)
            return run, judge(own, run(), truth, exact=stem == "ours" or self.direction == "forward")

        return Entrant(self.title_of(name), self.why_not(name, on), prepare)

    def title_of(self, name: str) -> str:
        stem, layout = name.split("/")
        return f"{TITLES[stem]}, {layout}"

    def why_not(self, name: str, on: Device) -> str | None:
        if name.startswith("folded") and self.direction != "forward":
            return "a batch normalisation can be folded in evaluation only"
        return uncompilable(on) if name.startswith("compiled") else None

    def growing(self, name: str, on: Device) -> tuple[Call, Call]:
        stem, layout = name.split("/")

        def sized(case: Case, sizes: Sequence[tuple[int, int]]) -> Call:
            problem = make_problem(case, sizes, self.direction, DTYPES[self.dtype], on.torch)
            return runner(stem, problem.laid_out(LAYOUTS[layout]), self.direction)

        return sized(self.case.but(nodes=16), [(channels, 16) for channels, _ in self.sizes]), sized(
            self.case, self.sizes
        )


def judge(problem: Problem, found: Made, truth: Made, *, exact: bool = True) -> Verdict:
    """Embeddings and gradients against fp64, each relative to its largest value. exact: statistics without rounding
    that grows with the image."""
    wide = problem.features[0].dtype == torch.float32
    bound = BOUND_16_BITS if not wide else BOUND if exact else PEERS_TRAINING_BOUND
    gradient_bound = GRADIENT_BOUND if exact else PEERS_TRAINING_BOUND
    checks = [
        Verdict(_error(ours, true, true), bound, f"psi[{level}]")
        for level, (ours, true) in enumerate(zip(found[0], truth[0], strict=True))
    ]
    names = {id(p): name for name, p in problem.levels.named_parameters()}
    weights = [true for x, true in zip(problem.wanted, truth[1], strict=False) if x.dim() > 1]
    for x, ours, true in zip(problem.wanted, found[1], truth[1], strict=False):
        name = names.get(id(x), "features")
        # batch statistics take away whatever a bias adds: its gradient is zero, and what is left is rounding
        scale = torch.stack([w.abs().max() for w in weights]).max() if ".conv." in name else true
        checks.append(Verdict(_error(ours, true, scale), gradient_bound, f"gradient of {name}"))
    return worst_of(checks)


def _error(ours: Tensor, true: Tensor, scale: Tensor) -> float:
    return ((ours.double() - true).abs().max() / scale.abs().max()).item()
