"""Ψ on the GPU: every launch row against fp64, then the five levels of DifNet-50 by graph replay beside the torch
layers.

Timed is what the backend does: project and pool, with the statistics in training. BN's affine map of the pooled field,
at most 64² nodes, is not in our time; the layers' time has everything. The floor is f read once at 4.8 TB/s; forward
and backward read it twice and write its gradient.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from benchmarks.gpu.graphs import replayed
from benchmarks.gpu.stage import Report, first_line, microseconds, parser

DEVICE = "cuda"
EMBED = 64
BYTES_PER_S = 4.8e12
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# (channels, side of the feature map) of the five levels -> side of the seed's grid
LEVELS = {
    505: (((3, 505), (256, 127), (512, 64), (1024, 64), (2048, 64)), 64),
    321: (((3, 321), (256, 81), (512, 41), (1024, 41), (2048, 41)), 41),
}
# (C, D, dtype, channels last, training): together they reach every row that serves the architecture
PROBLEMS = [
    (channels, embed, dtype, last, training)
    for channels, embed in ((3, 64), (3, 200), (256, 64), (40, 64), (64, 200))
    for dtype, last, training in (("fp32", True, False), ("fp32", False, True), ("bf16", True, True))
] + [(256, 64, "fp16", False, False), (256, 64, "fp32", True, True)]
SIDE = 45  # ragged against a grid of 16
AT_ONCE = 6
# one product of fp16 halves keeps 22 bits of each factor; positions may differ where two pixels are that close
FORWARD, BACKWARD = 4e-6, 2e-5


@dataclass
class Level:
    """One feature map, its projection, and room for every output of the backend."""

    features: Tensor
    weight: Tensor
    slope: Tensor
    grid: int
    training: bool

    @staticmethod
    def draw(
        batch: int, channels: int, side: int, grid: int, embed: int, dtype: torch.dtype, last: bool, training: bool
    ) -> Level:
        chance = torch.Generator().manual_seed(7)
        features = torch.randn((batch, channels, side, side), generator=chance).to(DEVICE, dtype)
        if last:
            features = features.contiguous(memory_format=torch.channels_last)
        weight = (torch.randn((embed, channels), generator=chance) * channels**-0.5).to(DEVICE)
        slope = torch.where(torch.arange(embed) % 3 == 1, -1.0, 1.0).to(DEVICE)
        return Level(features, weight, slope, grid, training)

    def __post_init__(self) -> None:
        B, D = self.features.shape[0], self.weight.shape[0]
        nodes = (B, 1, self.grid, self.grid, D)
        self.peak = torch.empty(nodes, device=DEVICE).permute(0, 4, 1, 2, 3)
        self.position = torch.empty(nodes, device=DEVICE, dtype=torch.int32).permute(0, 4, 1, 2, 3)
        self.mean, self.variance = (torch.empty(D, device=DEVICE) for _ in range(2))
        self.grad_peak = torch.randn(nodes, device=DEVICE).permute(0, 4, 1, 2, 3)
        self.grad_mean, self.grad_variance = (torch.randn(D, device=DEVICE) for _ in range(2))
        self.grad_features = torch.empty_like(self.features)
        self.grad_weight = torch.empty_like(self.weight)

    @property
    def read_once(self) -> float:
        """Microseconds."""
        return 1e6 * self.features.numel() * self.features.element_size() / BYTES_PER_S

    def forward(self) -> list[Tensor]:
        from difnet_kernels.backends import triton as backend

        kept = (self.mean, self.variance) if self.training else (None, None)
        backend.projection_forward(
            self.features.unsqueeze(2), self.weight, self.slope, peak=self.peak, position=self.position, mean=kept[0],
            variance=kept[1],
        )  # fmt: skip
        return [self.peak, self.position, *(x for x in kept if x is not None)]

    def both(self) -> list[Tensor]:
        from difnet_kernels.backends import triton as backend

        made = self.forward()
        kept = (self.grad_mean, self.grad_variance, self.mean) if self.training else (None, None, None)
        image = self.features.shape[1] <= 3  # an image needs no gradient
        backend.projection_backward(
            self.grad_peak, kept[0], kept[1], self.features.unsqueeze(2), self.weight, self.position, kept[2],
            grad_features=None if image else self.grad_features.unsqueeze(2), grad_weight=self.grad_weight,
        )  # fmt: skip
        return [*made, self.grad_weight, *([] if image else [self.grad_features])]

    def layers(self) -> tuple[nn.Module, Tensor]:
        """Conv, BN and pooling as modules, and a leaf of the features."""
        conv = nn.Conv2d(self.weight.shape[1], self.weight.shape[0], 1)
        norm = nn.BatchNorm2d(self.weight.shape[0])
        model = nn.Sequential(conv, norm, nn.AdaptiveMaxPool2d(self.grid)).to(DEVICE, self.features.dtype)
        with torch.no_grad():
            conv.weight.copy_(self.weight[:, :, None, None])
            norm.weight.copy_(self.slope)
        model.train(self.training)
        return model, self.features.detach().clone().requires_grad_(self.features.shape[1] > 3)


def check(channels: int, embed: int, dtype: str, last: bool, training: bool) -> dict[str, object]:
    """One problem, forward and backward, against fp64 on the GPU."""
    level = Level.draw(2, channels, SIDE, 16, embed, DTYPES[dtype], last, training)
    level.both()
    features, weight = level.features.double().requires_grad_(), level.weight.double().requires_grad_()
    z = torch.einsum("dc,bcyx->bdyx", weight, features)
    sign = level.slope.double()[:, None, None]
    best = adaptive_max_pool2d(sign * z.detach(), level.grid) * sign
    position = level.position.squeeze(2).long()
    chosen = z.flatten(2).gather(2, position.flatten(2)).reshape(position.shape)
    rows = z.transpose(0, 1).flatten(1)
    outputs = [(chosen, level.grad_peak.squeeze(2).double())]
    if training:
        outputs.append((rows.mean(1), level.grad_mean.double()))
        outputs.append((rows.var(1, unbiased=False), level.grad_variance.double()))
    made = torch.autograd.grad([x for x, _ in outputs], [features, weight], [g for _, g in outputs])
    chosen, rows = chosen.detach(), rows.detach()
    size = torch.einsum("dc,bcyx->bdyx", weight.detach().abs(), features.detach().abs()).max()
    stored = {"fp32": 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}[dtype]
    errors = {
        "peak": ((level.peak.squeeze(2) - best).abs().max() / size, FORWARD),
        "position": ((chosen - best).abs().max() / size, FORWARD),
        "grad_weight": ((level.grad_weight - made[1]).abs().max() / made[1].abs().max(), BACKWARD),
    }
    if channels > 3:
        error = (level.grad_features.double() - made[0]).abs().max() / made[0].abs().max()
        errors["grad_features"] = (error, BACKWARD + stored)
    if training:
        errors["mean"] = ((level.mean - rows.mean(1)).abs().max() / size, FORWARD)
        errors["variance"] = ((level.variance / rows.var(1, unbiased=False) - 1).abs().max(), BACKWARD)
    worst = max(errors, key=lambda name: float(errors[name][0]) / errors[name][1])
    return {
        "passed": all(float(error) <= bound for error, bound in errors.values()),
        "worst": worst,
        "error": float(errors[worst][0]),
        "bound": errors[worst][1],
    }


def check_rows(report: Report, options: list[str]) -> int:
    """Each problem in a process of its own, because compilers have broken single tile shapes before."""
    failed = 0
    for begin in range(0, len(PROBLEMS), AT_ONCE):
        started = []
        for problem in PROBLEMS[begin : begin + AT_ONCE]:
            command = [sys.executable, "-m", "benchmarks.gpu.psi", *options, "--one", json.dumps(problem)]
            pipe = subprocess.PIPE
            started.append((problem, subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)))
        for problem, process in started:
            said, complained = process.communicate()
            if process.returncode == 0:
                facts = json.loads(said.strip().splitlines()[-1])
            else:
                facts = {"passed": False, "reason": (complained.strip().splitlines() or ["killed"])[-1][:300]}
            failed += not facts["passed"]
            names = ("channels", "embed", "dtype", "channels_last", "training")
            report.add(question="row", **dict(zip(names, problem, strict=True)), **facts)
    return failed


def layers_call(level: Level, backward: bool) -> Callable[[], list[Tensor]]:
    model, features = level.layers()
    leaves = [x for x in (features, *model.parameters()) if x.requires_grad]
    grad = level.grad_peak.squeeze(2).to(features.dtype)

    def call() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [model(features)]
        out = model(features)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return call


def measure(side: int, batch: int, dtype: str, last: bool, training: bool, report: Report) -> int:
    """One row for each level, and one for all five in one graph."""
    shapes, grid = LEVELS[side]
    failed = 0
    levels = [Level.draw(batch, C, n, grid, EMBED, DTYPES[dtype], last, training) for C, n in shapes]
    cases = [(f"{C} x {n}²", [level]) for (C, n), level in zip(shapes, levels, strict=True)] + [("all five", levels)]
    for name, chosen in cases:
        facts: dict[str, object] = {"question": "time", "side": side, "batch": batch, "dtype": dtype,
                                    "channels_last": last, "training": training, "level": name}  # fmt: skip
        try:
            ours = [level.both if training else level.forward for level in chosen]
            theirs = [layers_call(level, training) for level in chosen]
            first = [x.clone() for call in ours for x in call()]
            graph, made = replayed(lambda ours=ours: [x for call in ours for x in call()])
            graph.replay()
            torch.cuda.synchronize()
            facts["replay_equals_eager"] = all(torch.equal(a, b) for a, b in zip(first, made, strict=True))
            if not facts["replay_equals_eager"]:
                raise RuntimeError("the graph's results are not those of the calls it captured; no time is taken")
            floor = sum(level.read_once for level in chosen) * (3 if training else 1)
            taken = microseconds(graph.replay, rounds=15)
            peer = microseconds(lambda theirs=theirs: [call() for call in theirs], rounds=10, inner=2)
            facts |= {"microseconds": taken, "layers": peer, "h200_floor": floor,
                      "fraction_of_h200_floor": floor / taken["median"]}  # fmt: skip
            replay = replayed(lambda theirs=theirs: [x for call in theirs for x in call()])[0]
            facts["layers_replayed"] = microseconds(replay.replay, rounds=10, inner=2)
        except Exception as error:
            failed += 1
            facts["reason"] = first_line(error)
        report.add(**facts)
    return failed


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--one", help="a problem as JSON: check it in this process and print the verdict")
    options = made.parse_args()
    if options.one:
        print(json.dumps(check(*json.loads(options.one))))
        return 0
    report = Report(options.out, options.seconds)
    failed = check_rows(report, ["--out", str(Path(options.out))])
    settings = [
        (side, 16 if training else 1, dtype, last, training)
        for training, last in ((False, True), (True, True), (False, False))
        for side in ((505, 321) if not training else (321,))
        for dtype in ("bf16", "fp32")
    ]
    for setting in settings:
        if report.time_is_up:
            report.left_out(question="time", setting=str(setting))
            continue
        failed += measure(*setting, report)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
