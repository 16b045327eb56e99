"""What a cascade, a Ψ, or both at once are asked: the sizes that every layer below trusts, once checks.py has let them pass.

A *field* is a tensor `(B, C, *S)`: B images, C channels, any number of spatial axes S. Its *nodes* are the N points of S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PRECISIONS = ("high", "medium")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(slots=True)
class Problem:
    """Sizes, dtypes and device of one cascade, after validation; whether its gradients are asked for, too, whether a walk has
    a bias, and whether lse is asked for (with gradients: differentiably)."""

    batch: int
    classes: int
    nodes: int
    embeds: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    precision: str
    gradients: bool = True
    bias: bool = False
    lse: bool = False

    @staticmethod
    def of(
        seed: Tensor,
        psi: Sequence[Tensor],
        precision: str,
        *,
        state: Tensor | None = None,
        gradients: bool = True,
        bias: Sequence[Tensor] = (),
        lse: bool = False,
    ) -> Problem:
        return Problem(
            batch=seed.shape[0],
            classes=seed.shape[1],
            nodes=math.prod(seed.shape[2:]),
            embeds=tuple([p.shape[1] for p in psi]),
            dtypes=tuple([x.dtype for x in (seed, *psi, *bias, *(() if state is None else (state,)))]),
            device=seed.device,
            precision=precision,
            gradients=gradients,
            bias=len(bias) > 0,
            lse=lse,
        )


@dataclass(slots=True)
class Projection:
    """Sizes, dtypes and device of one Ψ, after validation, and whether its gradients are asked for, too; pixels and nodes
    are per image."""

    batch: int
    channels: int
    embed: int
    pixels: int
    nodes: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    gradients: bool = True

    @staticmethod
    def of(features: Tensor, weight: Tensor, grid: Sequence[int], gradients: bool = True) -> Projection:
        return Projection(
            batch=features.shape[0],
            channels=features.shape[1],
            embed=weight.shape[0],
            pixels=math.prod(features.shape[2:]),
            nodes=math.prod(grid),
            dtypes=(features.dtype, weight.dtype),
            device=features.device,
            gradients=gradients,
        )


@dataclass(slots=True)
class ProjectedCascade:
    """A cascade whose ψ are projected in the same call, without gradients: both problems, after validation."""

    cascade: Problem
    projections: tuple[Projection, ...]

    @property
    def device(self) -> torch.device:
        return self.cascade.device

    @property
    def gradients(self) -> bool:
        return False

    @staticmethod
    def of(
        seed: Tensor, features: Sequence[Tensor], weight: Sequence[Tensor], precision: str, *, bias: bool = False
    ) -> ProjectedCascade:
        projections = tuple(
            [Projection.of(x, w, seed.shape[2:], gradients=False) for x, w in zip(features, weight, strict=True)]
        )
        cascade = Problem(
            batch=seed.shape[0],
            classes=seed.shape[1],
            nodes=math.prod(seed.shape[2:]),
            embeds=tuple([w.shape[0] for w in weight]),
            dtypes=tuple([x.dtype for x in (seed, *features, *weight)]),
            device=seed.device,
            precision=precision,
            gradients=False,
            bias=bias,
        )
        return ProjectedCascade(cascade, projections)

    @staticmethod
    def least(device: torch.device) -> ProjectedCascade:
        """Of one node, one class and one channel in fp32: what a backend says no to there, it says to `device`."""
        dtypes = (torch.float32, torch.float32)
        projection = Projection(1, 1, 1, 1, 1, dtypes, device, gradients=False)
        return ProjectedCascade(Problem(1, 1, 1, (1,), dtypes, device, "high", gradients=False), (projection,))


def accumulation_dtype(field: Tensor, others: Sequence[Tensor | None]) -> torch.dtype:
    """fp64 as soon as one of them is fp64 (so that gradcheck is real), fp32 otherwise."""
    for x in (field, *others):
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def is_node_major(x: Tensor) -> bool:
    """Channels last: the channels of a node lie next to each other."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def empty_field_like(x: Tensor, *, steps: int | None = None) -> Tensor:
    """An uninitialised field with the shape, dtype and memory format of `x`; with `steps`, that many of them, stacked."""
    lead = () if steps is None else (steps,)
    if not is_node_major(x):
        return x.new_empty((*lead, *x.shape))
    nodes_first = x.movedim(1, -1).shape
    return x.new_empty((*lead, *nodes_first)).movedim(-1, 1 + len(lead))


def flat(x: Tensor) -> Tensor:
    """(B, C, *S) as (B, C, N): a view wherever the spatial strides allow it."""
    return x if x.dim() == 3 else x.flatten(2)
