"""How long do T walks with their epilogue take, forward and forward+backward, beside every peer?

Also one walk, the sweeps, a call on few nodes, and CUDA graph replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.clock import Call, in_a_row
from benchmarks.device import Device, tensors_of
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.peers import CONTENDERS, Cascade, Contender, Setting
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest
from benchmarks.truth import Truth, Verdict, judge, truth_of

Made = TypeVar("Made")
Run = Callable[[], tuple[Tensor, list[Tensor] | None]]


@dataclass(frozen=True)
class CascadeTask(Task):
    """All contenders on one cascade.

    repeats: calls in one sample, for cascades of microseconds.
    judged: how many of the walks are compared with the truth, all by default. A large problem may compare the first
        only, on all of its nodes: the truth takes far longer than what is measured, and walks differ only in ψ.
    replayed: from a CUDA graph. Who cannot be captured has a row with the reason.
    """

    repeats: int = 1
    judged: int | None = None
    replayed: bool = False

    def measure(self, on: Device) -> list[Row]:
        setting = Setting(self.case, DTYPES[self.dtype], on, self.direction)
        inputs, truth = problem(self.case, self.kind, self.dtype, on.torch, self.judged)
        torch.compiler.reset()  # every shape compiled for itself, and no limit on how many
        entrants = {name: self._entrant(CONTENDERS[name], setting, inputs, truth) for name in self.contenders}
        return contest(self, entrants, on, per_call=self.repeats)

    def _entrant(self, contender: Contender, setting: Setting, inputs: Inputs, truth: Truth) -> Entrant:
        def prepare() -> tuple[Call, Verdict]:
            judged = inputs.first(truth.walks)
            run = runner(contender.build(setting), inputs, setting.direction)
            checked = (
                run if truth.walks == len(inputs.psi) else runner(contender.build(setting), judged, self.direction)
            )
            run()
            verdict = judge(judged, truth, *checked(), fp32_logits=contender.fp32_logits)
            if not self.replayed or not verdict.passed:
                return in_a_row(run, self.repeats) if self.repeats > 1 else run, verdict
            # peers add gradients in any order, so only ours must replay the same bits
            call, made = replay_of(run, setting.on, exact=contender.name == "ours")
            verdict = judge(inputs, truth, *made, fp32_logits=contender.fp32_logits)
            return in_a_row(call, self.repeats), verdict

        return Entrant(contender.title, contender.why_not(setting), prepare)

    def title_of(self, name: str) -> str:
        return CONTENDERS[name].title

    def why_not(self, name: str, on: Device) -> str | None:
        return CONTENDERS[name].why_not(Setting(self.case, DTYPES[self.dtype], on, self.direction))

    def growing(self, name: str, on: Device) -> tuple[Call, Call]:
        dtype = DTYPES[self.dtype]
        cascade = CONTENDERS[name].build(Setting(self.case, dtype, on, self.direction))
        # 4² nodes leave no trace
        small, large = (
            make_inputs(c, self.kind, dtype, on.torch) for c in (self.case.but(nodes=16, batch=1), self.case)
        )
        return runner(cascade, small, self.direction), runner(cascade, large, self.direction)


def replay_of(run: Callable[[], Made], on: Device, *, exact: bool) -> tuple[Call, Made]:
    """`run` from a CUDA graph, and what its replay has written. exact: raises RuntimeError unless that has the bits of
    the call."""
    called = [x.clone() for x in tensors_of(run())]
    replay, made = on.captured(run)
    for x in tensors_of(made):
        x.detach().fill_(float("nan"))  # what the capture itself has left does not count
    replay()
    if exact and not all(torch.equal(a, b) for a, b in zip(called, tensors_of(made), strict=True)):
        raise RuntimeError("replay gives other bits than the call that was captured")
    return replay, made


def runner(cascade: Cascade, inputs: Inputs, direction: str) -> Run:
    """The call that is timed: the cascade without a gradient, or with one and its backward."""
    if direction == "forward":

        def forward() -> tuple[Tensor, None]:
            with torch.no_grad():
                return cascade(inputs.seed, inputs.psi, inputs.mu, inputs.beta), None

        return forward

    leaves = inputs.leaves()
    wanted = leaves.differentiable

    def both() -> tuple[Tensor, list[Tensor]]:
        state = cascade(leaves.seed, leaves.psi, leaves.mu, leaves.beta)
        return state.detach(), list(torch.autograd.grad(state, wanted, leaves.grad))

    return both


# tasks on the same problem follow each other: one truth is enough, and a second one would only hold memory
_PROBLEM: dict[tuple[object, ...], tuple[Inputs, Truth]] = {}


def problem(case: Case, kind: str, dtype: str, device: str, judged: int | None = None) -> tuple[Inputs, Truth]:
    """Inputs and the truth of their first `judged` walks, kept until another problem is asked for."""
    key = (case, kind, dtype, device, judged)
    if key not in _PROBLEM:
        _PROBLEM.clear()
        inputs = make_inputs(case, kind, DTYPES[dtype], device)
        _PROBLEM[key] = inputs, truth_of(inputs.first(judged or case.walks), backward=True)
    return _PROBLEM[key]
