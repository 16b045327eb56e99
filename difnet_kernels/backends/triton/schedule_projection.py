"""Ψ forward and backward: from tensors to launches.

All buffers come from torch's allocator on the current stream and nothing waits for the device, so that both can be
captured in a CUDA graph. The plan depends on sizes, strides and dtypes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import projection_rows
from .plan import INTERPRETED, Card, card_of, fp32_for_interpreter, launch, on_device, power_of_two
from .projection_rows import CHUNKS, PAD, Case, Launch
from .psi_backward import (
    psi_feature_gradient_kernel,
    psi_narrow_backward_kernel,
    psi_pixel_gradient_kernel,
    psi_weight_gradient_kernel,
    psi_weight_reduce_kernel,
)
from .psi_forward import psi_forward_kernel, psi_statistics_kernel
from .psi_tiles import psi_weight_kernel

NARROW = 4  # up to so many channels are multiplied without the matrix units
SCRATCH = 2**21  # numbers of ∂z in flight: 8 MiB, which stays in the L2 cache
PROGRAMS = 512  # bounds the parts of grad_weight


@dataclass(frozen=True)
class Axes:
    """Strides of one field for the kernels: batch, channel, three axes; batch and axes in units of `unit` elements."""

    strides: tuple[int, ...]
    unit: int
    last: bool  # channels are contiguous

    def flat(self, grid: tuple[int, int, int]) -> bool:
        """The pixels of a channel lie next to each other, in scan order."""
        axes = ((self.strides[2], grid[1] * grid[2]), (self.strides[3], grid[2]), (self.strides[4], 1))
        return not self.last and all(stride == scan for n, (stride, scan) in zip(grid, axes, strict=True) if n > 1)

    @staticmethod
    def of(x: Tensor, *, vectors: bool = False) -> Axes:
        """vectors: look for units of 16 elements, which lets the kernels load vectors."""
        batch, channel, *axes = (0 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True))
        last = x.stride(1) == 1 or x.shape[1] == 1
        unit = 16 if vectors and last and all(s % 16 == 0 for s in (batch, *axes)) else 1
        return Axes((batch // unit, channel, *(s // unit for s in axes)), unit, last)


@dataclass(frozen=True)
class Plan:
    """One projection: its sizes, and what the kernels are compiled for."""

    card: Card
    batch: int
    channels: int
    embed: int
    grid: tuple[int, int, int]
    pooled: tuple[int, int, int]
    exact: bool  # features are 16-bit
    statistics: bool

    @staticmethod
    def of(features: Tensor, weight: Tensor, pooled: Tensor, statistics: bool) -> Plan:
        batch, channels, Z, Y, X = features.shape
        exact = features.dtype in (torch.float16, torch.bfloat16)
        OZ, OY, OX = pooled.shape[2:]
        card = card_of(features.device)
        return Plan(card, batch, channels, weight.shape[0], (Z, Y, X), (OZ, OY, OX), exact, statistics)

    @property
    def narrow(self) -> bool:
        return self.channels <= NARROW

    @property
    def DP(self) -> int:
        return power_of_two(self.embed)

    @property
    def pixels(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def nodes(self) -> int:
        return self.pooled[0] * self.pooled[1] * self.pooled[2]

    @property
    def chunk(self) -> int:
        """Channels of a chunk: what this width takes, or fewer if there are not so many."""
        return min(CHUNKS[self.DP], power_of_two(self.channels))

    @property
    def columns(self) -> int:
        return triton.cdiv(self.channels, self.chunk) * self.chunk

    @property
    def even(self) -> bool:
        return self.columns == self.channels

    def row(self, kind: str, channels_last: bool) -> Launch:
        case = Case(kind, self.card.arch, self.DP, self.narrow, self.statistics, channels_last)
        return projection_rows.select(case)

    def split_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(halves [2, DP, columns] fp16, unit [DP])."""
        halves = torch.empty((2, self.DP, self.columns), dtype=torch.float16, device=weight.device)
        unit = torch.empty((self.DP,), dtype=torch.float32, device=weight.device)
        launch("psi_weight", psi_weight_kernel, self.DP // 2, weight, halves, unit, self.channels, self.embed,
               DP=self.DP, CC=self.chunk, R=2, BLOCK=1024)  # fmt: skip
        return halves, unit


def widest(n: int, m: int) -> int:
    """Cells of the largest of m adaptive windows over n cells: a window starts i·n/m late in its first cell, and the
    latest start is one common divisor before the next cell."""
    return triton.cdiv(n + m - math.gcd(n, m), m)


def projection_forward(
    features: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    *,
    peak: Tensor,
    position: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
) -> None:
    """Ψ1 up to bias and BN, into preallocated outputs; any strides.

    peak (B, D, Z', H', W'): z = W f at the pixel of every window where sign(slope)·z is largest (the first of equals;
    NaN wins); position, int32 and strided like peak: that pixel's flat index in its image. mean, variance (D,): of z
    over all pixels of the batch, biased; both or neither.
    """
    plan = Plan.of(features, weight, peak, mean is not None)
    with on_device(features):
        if INTERPRETED:
            with fp32_for_interpreter([features], []) as fp32:
                _forward(plan, fp32(features), weight, slope, peak, position, mean, variance)
        else:
            _forward(plan, features, weight, slope, peak, position, mean, variance)


def _forward(
    plan: Plan,
    features: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    peak: Tensor,
    position: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
) -> None:
    given = Axes.of(features, vectors=not plan.narrow)
    tile = plan.row("forward", given.last)
    halves, unit = (weight, weight) if plan.narrow else plan.split_weight(weight)
    programs = plan.batch * triton.cdiv(plan.nodes, tile.pixels)
    partial = peak  # not touched without statistics
    if plan.statistics:
        partial = torch.empty((programs, 3, plan.DP), dtype=torch.float32, device=features.device)
    windows = (widest(n, m) for n, m in zip(plan.grid, plan.pooled, strict=True))
    launch("psi_forward", psi_forward_kernel, programs, features, *given.strides, weight, halves, unit,
           weight if slope is None else slope, peak, position, *peak.stride(), partial, plan.channels, plan.embed,
           *plan.grid, *plan.pooled, *windows, DP=plan.DP, J=tile.pixels,
           CC=plan.chunk, NARROW=plan.channels if plan.narrow else 0, EVEN=plan.even,
           CHANNELS_LAST=given.last and not plan.narrow, UNIT=given.unit, EXACT=plan.exact,
           HAS_SLOPE=slope is not None, STATISTICS=plan.statistics, OUT_LAST=Axes.of(peak).last,
           warps=tile.warps, stages=tile.stages)  # fmt: skip
    if plan.statistics:
        launch("psi_statistics", psi_statistics_kernel, plan.DP // 16, partial, mean, variance, programs, plan.embed,
               DP=plan.DP, R=128, PART=16)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Gradients of mean and variance, as the kernels take them: a missing one is never read."""

    mean: Tensor
    grad_mean: Tensor
    grad_variance: Tensor
    has_mean: int
    has_variance: int
    share: float  # 1 / number of pixels

    @property
    def arguments(self) -> tuple[Tensor | int | float, ...]:
        return self.mean, self.grad_mean, self.grad_variance, self.has_mean, self.has_variance, self.share


def projection_backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    mean: Tensor | None,
    *,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Ψ2-Ψ4 into preallocated gradients (None: not wanted), from the positions and the mean of projection_forward; any
    strides, 0 included."""
    statistics = mean is not None and not (grad_mean is None and grad_variance is None)
    plan = Plan.of(features, weight, position, statistics)
    other = weight if mean is None else mean
    gradients = Statistics(
        other, other if grad_mean is None else grad_mean, other if grad_variance is None else grad_variance,
        int(grad_mean is not None), int(grad_variance is not None), 1.0 / max(1, plan.batch * plan.pixels),
    )  # fmt: skip
    run = _narrow_backward if plan.narrow else _backward
    with on_device(features):
        if INTERPRETED:
            outputs = [x for x in (grad_features,) if x is not None]
            with fp32_for_interpreter([features, grad_peak], outputs) as fp32:
                run(plan, fp32(grad_peak), gradients, fp32(features), weight, position, fp32(grad_features),
                    grad_weight)  # fmt: skip
        else:
            run(plan, grad_peak, gradients, features, weight, position, grad_features, grad_weight)


def _narrow_backward(
    plan: Plan,
    grad_peak: Tensor,
    statistics: Statistics,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    grad, chosen, given = Axes.of(grad_peak), Axes.of(position), Axes.of(features)
    out = features if grad_features is None else grad_features
    tile = plan.row("backward", False)
    per_image = triton.cdiv(plan.pixels, PAD)
    units = plan.batch * per_image
    ranges, range_units = _ranges(units, 2 * PROGRAMS)
    part = torch.empty((ranges, plan.DP, plan.channels), dtype=torch.float32, device=features.device)
    launch("psi_narrow_backward", psi_narrow_backward_kernel, ranges, grad_peak, *grad.strides, position,
           *chosen.strides, features, *given.strides, out, *Axes.of(out).strides, weight, *statistics.arguments, part,
           plan.embed, *plan.grid, *plan.pooled, per_image, units, range_units, DP=plan.DP, P=tile.pixels, PAD=PAD,
           NARROW=plan.channels, GRAD_LAST=grad.last, POSITION_LAST=chosen.last, STATISTICS=plan.statistics,
           WANT_FEATURES=grad_features is not None, warps=tile.warps, stages=tile.stages)  # fmt: skip
    if grad_weight is not None:
        _reduce(plan, part, grad_weight)


def _backward(
    plan: Plan,
    grad_peak: Tensor,
    statistics: Statistics,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    grad, chosen, given = Axes.of(grad_peak), Axes.of(position), Axes.of(features, vectors=True)
    halves, unit = plan.split_weight(weight)
    per_image = triton.cdiv(plan.pixels, PAD)
    units = plan.batch * per_image
    block = min(max(1, SCRATCH // (plan.DP * PAD)), max(1, units))
    chunks = plan.columns // plan.chunk
    ranges, range_units = _ranges(block, max(1, PROGRAMS // chunks))
    scratch = torch.empty((block * PAD, plan.DP), dtype=torch.float32, device=features.device)
    part = None
    if grad_weight is not None:
        part = torch.empty((ranges, plan.DP, plan.columns), dtype=torch.float32, device=features.device)
    shape = dict(DP=plan.DP, PAD=PAD, CC=plan.chunk, EVEN=plan.even)
    of_features = dict(CHANNELS_LAST=given.last, UNIT=given.unit, EXACT=plan.exact)
    for first in range(0, units, block):
        last = min(first + block, units)
        tile = plan.row("pixel_gradient", given.last)
        launch("psi_pixel_gradient", psi_pixel_gradient_kernel, (last - first) * (PAD // tile.pixels), grad_peak,
               *grad.strides, position, *chosen.strides, features, *given.strides, halves, unit, *statistics.arguments,
               scratch, plan.channels, plan.embed, *plan.grid, *plan.pooled, per_image, first, **shape, **of_features,
               P=tile.pixels, GRAD_LAST=grad.last, POSITION_LAST=chosen.last, STATISTICS=plan.statistics,
               warps=tile.warps, stages=tile.stages)  # fmt: skip
        if grad_features is not None:
            out = Axes.of(grad_features, vectors=True)
            tile = plan.row("feature_gradient", out.last)
            tiles = (last - first) * (PAD // tile.pixels)
            # programs of few chunks while the block has too few pixels to fill the card
            group = triton.cdiv(chunks, max(1, PROGRAMS // tiles))
            launch("psi_feature_gradient", psi_feature_gradient_kernel, tiles * triton.cdiv(chunks, group),
                   scratch, halves, unit, grad_features, *out.strides, plan.channels, *plan.grid, per_image, first,
                   group, **shape, P=tile.pixels, CHANNELS_LAST=out.last, UNIT=out.unit, warps=tile.warps,
                   stages=tile.stages)  # fmt: skip
        if part is not None:
            tile = plan.row("weight_gradient", given.last)
            launch("psi_weight_gradient", psi_weight_gradient_kernel, chunks * ranges, scratch, features,
                   *given.strides, part, plan.channels, *plan.grid, per_image, first, last, range_units,
                   int(first > 0), **shape, **of_features, FLAT=given.flat(plan.grid),
                   warps=tile.warps, stages=tile.stages)  # fmt: skip
    if part is not None and grad_weight is not None:
        _reduce(plan, part, grad_weight)


def _ranges(units: int, most: int) -> tuple[int, int]:
    """(ranges, units per range) of a two-step sum over the units, at most `most` ranges; none is empty."""
    per_range = max(1, triton.cdiv(units, most))
    return triton.cdiv(units, per_range), per_range


def _reduce(plan: Plan, part: Tensor, grad_weight: Tensor) -> None:
    ranges, DP, columns = part.shape
    launch("psi_weight_reduce", psi_weight_reduce_kernel, triton.cdiv(DP * columns, 64), part, grad_weight,
           plan.channels, plan.embed, ranges, columns, DP=DP, R=32, E=64)  # fmt: skip
