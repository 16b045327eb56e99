"""How long does a cascade take, forward and forward+backward, beside every peer? (Also one walk, and the sweeps.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.clock import Call, in_a_row
from benchmarks.correctness import Truth, Verdict, judge, truth_of, truth_of_some
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.peers import CONTENDERS, Cascade, Contender, Setting
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest


@dataclass(frozen=True)
class CascadeTask(Task):
    """All contenders on one cascade.

    repeats: calls in one sample, for cascades of microseconds.
    judged: how many of the walks are compared with the truth, all by default. A large problem may compare the first
        only, on all of its nodes: the truth takes far longer than what is measured, and walks differ only in ψ.
    sampled: at how many nodes, all by default. For one walk forward that is too large even for that.
    """

    repeats: int = 1
    judged: int | None = None
    sampled: int | None = None

    def measure(self, device: str) -> list[Row]:
        setting = Setting(self.case, DTYPES[self.dtype], device, self.direction)
        inputs, truth = problem(self.case, self.kind, self.dtype, device, self.judged, self.sampled)
        torch.compiler.reset()  # every shape compiled for itself, and no limit on how many
        entrants = {name: self.entrant(CONTENDERS[name], setting, inputs, truth) for name in self.contenders}
        return contest(self, entrants, device, per_call=self.repeats)

    def entrant(self, contender: Contender, setting: Setting, inputs: Inputs, truth: Truth) -> Entrant:
        def prepare() -> tuple[Call, Verdict]:
            run = runner(contender.build(setting), inputs, setting.direction)
            state, grads = run()
            judged = inputs
            if truth.walks < len(inputs.psi):
                judged = inputs.first(truth.walks)
                state, grads = runner(contender.build(setting), judged, setting.direction)()
            verdict = judge(judged, truth, state, grads, fp32_logits=contender.fp32_logits)
            return (in_a_row(run, self.repeats) if self.repeats > 1 else run), verdict

        return Entrant(contender.title, contender.why_not(setting), prepare)


def runner(cascade: Cascade, inputs: Inputs, direction: str) -> Callable[[], tuple[Tensor, list[Tensor] | None]]:
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


def problem(
    case: Case, kind: str, dtype: str, device: str, judged: int | None = None, sampled: int | None = None
) -> tuple[Inputs, Truth]:
    """Inputs and the truth of their first `judged` walks, kept until another problem is asked for."""
    key = (case, kind, dtype, device, judged, sampled)
    if key not in _PROBLEM:
        _PROBLEM.clear()
        inputs = make_inputs(case, kind, DTYPES[dtype], device)
        told = inputs.first(judged or case.walks)
        _PROBLEM[key] = inputs, truth_of_some(told, sampled) if sampled else truth_of(told, backward=True)
    return _PROBLEM[key]


def growing(case: Case, kind: str, dtype: str, direction: str, contender: str, device: str) -> tuple[Call, Call]:
    """A small call that loads all code, and the call whose memory counts."""
    cascade = CONTENDERS[contender].build(Setting(case, DTYPES[dtype], device, direction))
    # 4² nodes leave no trace
    tiny, whole = (make_inputs(sized, kind, DTYPES[dtype], device) for sized in (case.but(nodes=16, batch=1), case))
    return runner(cascade, tiny, direction), runner(cascade, whole, direction)
