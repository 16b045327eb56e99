"""The five levels of DifNet-50 by graph replay beside the torch layers, and the fraction of the floor.

Timed is what the backend does: project and pool, with the statistics in training. BN's affine map of the pooled field,
at most 64² nodes, is not in our time; the layers' time has everything. The floor is f read once at 4.8 TB/s; forward
and backward read it twice and write its gradient. No time without truth: every level is compared with fp64 before, and
the layers with the level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.level import Level, judge, judge_layers
from benchmarks.gpu.stage import Report, first_line, in_turns, must_pass, parser
from benchmarks.psi import GRIDS, LEVELS
from benchmarks.replay import captured
from benchmarks.tasks import DTYPES

# (side, batch, dtype, channels last, training): the most important first
SETTINGS = [
    (side, 16 if training else 1, dtype, last, training)
    for training, last in ((False, True), (True, True), (False, False))
    for side in ((505, 321) if not training else (321,))
    for dtype in ("bf16", "fp32")
]


def layers_call(level: Level) -> Callable[[], list[Tensor]]:
    """The pooled field, and in training the gradients."""
    model, features = level.layers()
    leaves = [x for x in (features, *model.parameters()) if x.requires_grad]
    grad = level.grad_peak.squeeze(2).to(features.dtype)

    def call() -> list[Tensor]:
        if not level.training:
            with torch.no_grad():
                return [model(features)]
        out = model(features)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return call


def ours_call(levels: Sequence[Level]) -> Callable[[], list[Tensor]]:
    return lambda: [x for level in levels for x in (level.both() if level.training else level.forward())]


def checked(level: Level) -> dict[str, object]:
    """Facts about a level that is right; raises if it is not."""
    level.both()
    found = judge(level)
    must_pass(found)
    return {"error": found.error, "bound": found.bound, "worst": found.worst}


def times(levels: Sequence[Level]) -> dict[str, object]:
    """Ours and the layers by graph replay, in turns; a reason in place of the layers' time if they have none."""
    call = ours_call(levels)
    first = [x.clone() for x in call()]
    graph, made = captured(call)
    graph.replay()
    if not all(torch.equal(a, b) for a, b in zip(first, made, strict=True)):
        raise RuntimeError("not timed: the graph's results are not those of the calls that it captured")
    calls: dict[str, Callable[[], object]] = {"microseconds": graph.replay}
    facts: dict[str, object] = {}
    try:
        theirs = [layers_call(level) for level in levels]
        for level, layers in zip(levels, theirs, strict=True):
            must_pass(judge_layers(level, layers()[0]))
        replay, _ = captured(lambda: [x for layers in theirs for x in layers()])
        calls |= {"layers_replayed": replay.replay, "layers": lambda: [layers() for layers in theirs]}
    except Exception as error:
        facts["layers_reason"] = first_line(error)
    facts |= in_turns(calls, rounds=15, inner=3)
    floor = sum(level.read_once for level in levels) * (3 if levels[0].training else 1)
    return {**facts, "h200_floor": floor, "fraction_of_h200_floor": floor / facts["microseconds"]["median"]}  # type: ignore[index]


def measure(side: int, batch: int, dtype: str, last: bool, training: bool, report: Report, device: str = "cuda") -> int:
    """One entry for each level, and one for all five in one graph; how many have failed."""
    asked: dict[str, object] = {"side": side, "batch": batch, "dtype": dtype, "channels_last": last,
                                "training": training}  # fmt: skip
    grid, embed = GRIDS[side].grid[0], GRIDS[side].embed
    failed, levels = 0, []
    for C, n in LEVELS[side]:
        facts = {**asked, "level": f"{C} x {n}²"}
        try:
            level = Level.draw(
                batch, C, n, grid, embed, DTYPES[dtype], channels_last=last, training=training, device=device
            )
            facts |= checked(level)
            facts |= times([level])
            levels.append(level)
        except Exception as error:
            failed += 1
            facts["reason"] = first_line(error)
        report.add(**facts)
    facts = {**asked, "level": "all five"}
    try:
        if len(levels) < len(LEVELS[side]):
            raise RuntimeError("not timed: one of them failed")
        facts |= times(levels)
    except Exception as error:
        failed += 1
        facts["reason"] = first_line(error)
    report.add(**facts)
    return failed


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    failed = 0
    for setting in SETTINGS:
        if report.time_is_up:
            report.left_out(setting=str(setting))
            continue
        failed += measure(*setting, report)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
