"""How long do the small cascades take by graph replay? Launches, most of an eager time at one image, are left to no one.

Every contender is called, compared with the truth, captured in a CUDA graph, replayed and compared again before any of
them is timed; one that cannot be captured has a row with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.cascade import CascadeTask, runner
from benchmarks.clock import Call, in_a_row
from benchmarks.correctness import Truth, Verdict, judge
from benchmarks.inputs import Inputs
from benchmarks.peers import OURS, Contender, Setting
from benchmarks.tasks import Entrant

Made = TypeVar("Made")


def captured(call: Callable[[], Made]) -> tuple[torch.cuda.CUDAGraph, Made]:
    """`call` captured after a warm-up on a side stream, and the tensors that a replay writes."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    here.wait_stream(side)
    graph, cause = torch.cuda.CUDAGraph(), None
    try:
        with torch.cuda.graph(graph):
            try:
                made = call()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        torch.cuda.set_stream(here)  # a capture that fails stays on its own stream, and complains of itself alone
        raise cause or error from None
    return graph, made


@dataclass(frozen=True)
class ReplayTask(CascadeTask):
    """All contenders on one cascade, `repeats` replays in a sample: walks find their fields in the L2 cache, as in use."""

    repeats: int = 5

    def entrant(self, contender: Contender, setting: Setting, inputs: Inputs, truth: Truth) -> Entrant:
        def judged(state: Tensor, grads: list[Tensor] | None) -> Verdict:
            return judge(inputs, truth, state, grads, fp32_logits=contender.fp32_logits)

        def prepare() -> tuple[Call, Verdict]:
            run = runner(contender.build(setting), inputs, setting.direction)
            state, grads = run()
            verdict = judged(state, grads)
            if not verdict.passed:
                return run, verdict
            called = [x.clone() for x in (state, *(grads or ()))]
            graph, (state, grads) = captured(run)
            graph.replay()
            same = all(torch.equal(a, b) for a, b in zip(called, (state, *(grads or ())), strict=True))
            if contender is OURS and not same:  # peers add gradients in any order
                raise RuntimeError("replay gives other bits than the call that was captured")
            return in_a_row(graph.replay, self.repeats), judged(state, grads)

        return Entrant(contender.title, contender.why_not(setting), prepare)
