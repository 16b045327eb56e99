"""How long does the steady state of a walk (Eq. 2) take to a tolerance, beside walks in a row and a dense solve?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.clock import Call
from benchmarks.device import Device
from benchmarks.inputs import make_inputs
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest
from benchmarks.truth import Verdict
from difnet_kernels import cascaded_random_walk, diffuse

MU, TOL = 0.9, 1e-4
TITLES = {
    "ours": "difnet_kernels",
    "stored": "difnet_kernels, P stored",
    "walks": "plain walks, as many as tol needs",
    "solve": "torch.linalg.solve",
}
Solver = Callable[[Tensor, Tensor], Tensor]


def dense(seed: Tensor, psi: Tensor) -> Tensor:
    """(W6) with N × N numbers, in the dtype of its inputs."""
    nodes = psi.flatten(2).mT
    P = torch.softmax(nodes @ nodes.mT, -1)
    identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return torch.linalg.solve(identity - MU * P, (1 - MU) * seed.flatten(2).mT).mT.reshape(seed.shape)


def in_a_row(seed: Tensor, psi: Tensor) -> Tensor:
    """μᵗ of the first error, at most 2 max|s|, is left after t walks."""
    walks = math.ceil(math.log(TOL / 2) / math.log(MU))
    y = cascaded_random_walk(seed, [psi] * walks, [MU] * walks, [1.0] * walks)
    assert isinstance(y, Tensor)
    return y


SOLVERS: dict[str, Solver] = {
    "ours": lambda seed, psi: diffuse(seed, psi, MU, tol=TOL),
    "stored": lambda seed, psi: diffuse(seed, psi, MU, tol=TOL, store=2**32),
    "walks": in_a_row,
    "solve": dense,
}


@dataclass(frozen=True)
class SteadyStateTask(Task):
    """Every solver on one image and one ψ, judged by tol against a solve in fp64."""

    def measure(self, on: Device) -> list[Row]:
        inputs = make_inputs(self.case, self.kind, DTYPES[self.dtype], on.torch)
        truth = dense(inputs.seed.double(), inputs.psi[0].double())
        largest = inputs.seed.double().abs().amax((2, 3), keepdim=True)

        def entrant(name: str) -> Entrant:
            def prepare() -> tuple[Call, Verdict]:
                run = runner(SOLVERS[name], inputs.seed, inputs.psi[0], self.direction)
                error = ((run().double() - truth) / largest).abs().max().item()
                return run, Verdict(error, 2 * TOL, "output")  # tol, and the rounding of fp32

            return Entrant(TITLES[name], None, prepare)

        return contest(self, {name: entrant(name) for name in self.contenders}, on, rounds=(3, 40))

    def title_of(self, name: str) -> str:
        return TITLES[name]

    def why_not(self, name: str, on: Device) -> str | None:
        return None


def runner(solver: Solver, seed: Tensor, psi: Tensor, direction: str) -> Callable[[], Tensor]:
    """The call that is timed: without a gradient, or with those of seed and ψ."""
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return solver(seed, psi)

        return forward
    leaves = [x.detach().requires_grad_() for x in (seed, psi)]
    upstream = torch.ones_like(seed)

    def both() -> Tensor:
        y = solver(leaves[0], leaves[1])
        torch.autograd.grad(y, leaves, upstream)
        return y.detach()

    return both
