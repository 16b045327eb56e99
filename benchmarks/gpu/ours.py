"""Our cascade as the stages call it: the inputs' types with the precision asked for, forward and with its backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.correctness import Truth, Verdict, judge
from benchmarks.gpu.stage import BACKEND
from benchmarks.inputs import Inputs

SETTINGS = (("bf16", "high"), ("fp32", "high"), ("fp32", "medium"))


def calls(inputs: Inputs, precision: str) -> dict[str, Callable[[], list[Tensor]]]:
    """By direction: the state, then the gradients in the order of `Inputs.differentiable`."""
    from difnet_kernels import cascaded_random_walk

    def forward() -> list[Tensor]:
        with torch.no_grad():
            y = cascaded_random_walk(
                inputs.seed, inputs.psi, inputs.mu, inputs.beta, precision=precision, backend=BACKEND
            )
        return [y]

    leaves = inputs.leaves()

    def both() -> list[Tensor]:
        y = cascaded_random_walk(leaves.seed, leaves.psi, leaves.mu, leaves.beta, precision=precision, backend=BACKEND)
        return [y.detach(), *torch.autograd.grad(y, leaves.differentiable, leaves.grad)]

    return {"forward": forward, "forward+backward": both}


def judged(inputs: Inputs, truth: Truth, made: list[Tensor], precision: str = "high") -> Verdict:
    return judge(inputs, truth, made[0], made[1:] or None, precision=precision)
