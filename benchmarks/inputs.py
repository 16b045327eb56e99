"""Inputs of the measurements, of three kinds: never zeros, and never only inputs on which the work vanishes.

smooth   ψ scaled so that the logits between different nodes have unit spread: every pair of nodes carries weight.
         The headline, because a kernel may rightly skip tiles whose weights are below rounding, and here none is.
network  ψ as a network makes it at initialisation: unit-variance channels after batch normalisation, partly
         smooth over the image, max-pooled to the grid of the seed; ‖ψ_i‖² is 60 to 550 and P hugs its diagonal.
maps     a few smooth maps lifted to D channels, ‖ψ_i‖² 60 to 550, as of a photograph: weights fade with the
         distance through the denormal numbers instead of dropping to zero, which some processors pay for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.cases import Case

KINDS = ("smooth", "network", "maps")
# features per node and side that the adaptive max pooling of Ψ sees at 505²: the image, then the four blocks
WINDOWS = (8, 2, 1, 1, 1)
# Table 3 of the paper
MU = (0.4159, 0.4193, 0.4077, 0.6520, 0.8956)
BETA = (0.4159, 0.4825, 0.5104, 0.6570, 0.8451)


@dataclass(frozen=True)
class Inputs:
    """One problem, ready to run: channels-last fields, as a channels-last network hands them over without a copy."""

    seed: Tensor
    psi: list[Tensor]
    mu: Tensor
    beta: Tensor
    grad: Tensor

    def leaves(self) -> Inputs:
        """The same values as leaves that ask for gradients."""
        fresh = [x.detach().requires_grad_() for x in (self.seed, *self.psi, self.mu, self.beta)]
        return Inputs(fresh[0], fresh[1:-2], fresh[-2], fresh[-1], self.grad)

    def first(self, walks: int) -> Inputs:
        """The same problem with only its first walks."""
        return Inputs(self.seed, self.psi[:walks], self.mu[:walks], self.beta[:walks], self.grad)

    @property
    def differentiable(self) -> list[Tensor]:
        return [self.seed, *self.psi, self.mu, self.beta]


def make_inputs(case: Case, kind: str, dtype: torch.dtype, device: str = "cpu", *, salt: int = 0) -> Inputs:
    """Inputs of `kind` for `case`; the same numbers on every device, because they are drawn on the CPU."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}; got {kind!r}.")
    draw = torch.Generator().manual_seed(1234 + salt)

    def ready(x: Tensor) -> Tensor:
        return x.to(device=device, dtype=dtype, memory_format=torch.channels_last)

    scores = (case.batch, case.classes, *case.grid)
    psi = []
    for t in range(case.walks):
        if kind == "smooth":
            # a product of two such vectors has variance D · D^(-1/2)² = 1
            psi.append(ready(torch.randn(case.batch, case.embed, *case.grid, generator=draw) * case.embed**-0.25))
        elif kind == "network":
            psi.append(ready(_network_psi(case, WINDOWS[t % len(WINDOWS)], draw)))
        else:
            psi.append(ready(_map_psi(case, draw)))
    gates = [torch.tensor([row[t % len(row)] for t in range(case.walks)], device=device) for row in (MU, BETA)]
    return Inputs(
        seed=ready(torch.randn(scores, generator=draw)),
        psi=psi,
        mu=gates[0],
        beta=gates[1],
        grad=ready(torch.randn(scores, generator=draw)),
    )


def _network_psi(case: Case, window: int, draw: torch.Generator) -> Tensor:
    """max over a window² patch of (smooth part + noise), each with half of a channel's unit variance."""
    height, width = case.grid
    smooth = _smooth_maps(case, case.embed, 6, draw)
    smooth = smooth / smooth.std(dim=(0, 2, 3), keepdim=True)
    # the largest of m independent normal numbers is distributed like Φ⁻¹(U^(1/m)): no need to draw all m
    uniform = torch.rand(case.batch, case.embed, height, width, generator=draw, dtype=torch.float64)
    largest = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12) ** (1.0 / window**2)).float()
    return 0.5**0.5 * (smooth + largest)


def _map_psi(case: Case, draw: torch.Generator) -> Tensor:
    """Four maps and a constant lifted to D; a fifth map sets the norm² of each node between 60 and 550."""
    maps = _smooth_maps(case, 5, 12, draw)
    few = torch.cat([maps[:, :4], torch.ones_like(maps[:, :1])], 1)
    lifted = torch.einsum("dm,bmhw->bdhw", torch.randn(case.embed, 5, generator=draw), few)
    squares = 305 + 245 * torch.sin(3 * maps[:, 4:])
    return lifted * (squares / lifted.square().sum(1, keepdim=True)).sqrt()


def _smooth_maps(case: Case, count: int, pitch: int, draw: torch.Generator) -> Tensor:
    """Normal numbers at every `pitch`-th node, and straight lines between them."""
    height, width = case.grid
    coarse = torch.randn(case.batch, count, -(-height // pitch), -(-width // pitch), generator=draw)
    return interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
