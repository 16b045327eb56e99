"""Ψ forward and backward: from tensors to launches.

All buffers come from torch's allocator on the current stream and nothing waits for the device, so that both can be
captured in a CUDA graph. The plan depends on sizes, strides and dtypes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..launch import Card, card_of, ceil_div, launch, on_device, power_of_two, strides
from ..rows import Case, Launch
from . import rows
from .backward import (
    projection_feature_gradient_kernel,
    projection_pixel_gradient_kernel,
    projection_weight_gradient_kernel,
    projection_weight_reduce_kernel,
)
from .forward import projection_forward_kernel, projection_statistics_kernel
from .narrow_backward import projection_narrow_backward_kernel
from .rows import CHUNKS, PAD
from .tiles import projection_weight_kernel

NARROW = 4  # up to so many channels are multiplied without the matrix units
SCRATCH = 2**21  # numbers of ∂z in flight: 8 MiB, which stays in the L2 cache
PROGRAMS = 512  # bounds the parts of grad_weight


@dataclass(frozen=True)
class Axes:
    """Strides of one field for the kernels: batch, channel, three axes; batch and axes in units of `unit` elements."""

    strides: tuple[int, ...]
    unit: int
    last: bool  # channels are contiguous

    def named(self, name: str, channel: str) -> dict[str, int]:
        """As arguments: name_b, the channels' axis, name_z, name_y, name_x."""
        return {f"{name}_{axis}": stride for axis, stride in zip(("b", channel, *"zyx"), self.strides, strict=True)}

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
    sixteen_bit: bool  # the features
    statistics: bool

    @staticmethod
    def of(features: Tensor, weight: Tensor, pooled: Tensor, statistics: bool) -> Plan:
        batch, channels, Z, Y, X = features.shape
        sixteen_bit = features.dtype in (torch.float16, torch.bfloat16)
        OZ, OY, OX = pooled.shape[2:]
        card = card_of(features.device)
        return Plan(card, batch, channels, weight.shape[0], (Z, Y, X), (OZ, OY, OX), sixteen_bit, statistics)

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
        return ceil_div(self.channels, self.chunk) * self.chunk

    @property
    def even(self) -> bool:
        return self.columns == self.channels

    @property
    def image_sizes(self) -> dict[str, int]:
        return dict(zip("ZYX", self.grid, strict=True))

    @property
    def pooled_sizes(self) -> dict[str, int]:
        return dict(zip(("OZ", "OY", "OX"), self.pooled, strict=True))

    def row(self, kernel: str, channels_last: bool) -> Launch:
        sizes = dict(DP=self.DP, statistics=int(self.statistics), channels_last=int(channels_last))
        return rows.select(Case(kernel, self.card.arch, sizes))

    def split_weight(self, weight: Tensor) -> dict[str, Tensor]:
        """hi and lo [2, DP, columns] fp16, unit [DP]."""
        hi_lo = torch.empty((2, self.DP, self.columns), dtype=torch.float16, device=weight.device)
        unit = torch.empty((self.DP,), dtype=torch.float32, device=weight.device)
        launch(
            "projection_weight",
            projection_weight_kernel,
            self.DP // 2,
            dict(given_weight_ptr=weight, split_ptr=hi_lo, unit_ptr=unit),
            dict(C=self.channels, D=self.embed),
            dict(DP=self.DP, CC=self.chunk, R=2, BLOCK=1024),
        )
        return dict(split_ptr=hi_lo, unit_ptr=unit)


def widest(n: int, m: int) -> int:
    """Cells of the largest of m adaptive windows over n cells: a window starts i·n/m late in its first cell, and the
    latest start is one common divisor before the next cell."""
    return ceil_div(n + m - math.gcd(n, m), m)


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
    axes = Axes.of(features, vectors=not plan.narrow)
    tile = plan.row("narrow_forward" if plan.narrow else "forward", axes.last)
    programs = plan.batch * ceil_div(plan.nodes, tile.cols)
    windows = (widest(n, m) for n, m in zip(plan.grid, plan.pooled, strict=True))
    with on_device(features):
        split = dict(split_ptr=weight, unit_ptr=weight) if plan.narrow else plan.split_weight(weight)
        partial = peak  # not touched without statistics
        if plan.statistics:
            partial = torch.empty((programs, 3, plan.DP), dtype=torch.float32, device=features.device)
        launch(
            "projection_forward",
            projection_forward_kernel,
            programs,
            dict(f_ptr=features, given_weight_ptr=weight, given_slope_ptr=weight if slope is None else slope),
            split | dict(peak_ptr=peak, position_ptr=position, partial_ptr=partial),
            dict(C=plan.channels, D=plan.embed) | plan.image_sizes | plan.pooled_sizes,
            dict(zip(("wide_z", "wide_y", "wide_x"), windows, strict=True)),
            axes.named("f", "c") | strides("out", "bdzyx", peak),
            dict(DP=plan.DP, J=tile.cols, CC=plan.chunk, NARROW=plan.channels if plan.narrow else 0, EVEN=plan.even),
            dict(CHANNELS_LAST=axes.last and not plan.narrow, UNIT=axes.unit, HAS_LOW=not plan.sixteen_bit),
            dict(HAS_SLOPE=slope is not None, STATISTICS=plan.statistics, OUT_LAST=Axes.of(peak).last),
            warps=tile.warps,
            stages=tile.stages,
        )
        if plan.statistics:
            launch(
                "projection_statistics",
                projection_statistics_kernel,
                plan.DP // 16,
                dict(partial_ptr=partial, mean_ptr=mean, variance_ptr=variance),
                dict(tiles=programs, D=plan.embed),
                dict(DP=plan.DP, R=128, PART=16),
            )


def projection_backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    mean: Tensor | None,
    *,
    z: Tensor | None = None,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Ψ2-Ψ4 into preallocated gradients (None: not wanted), from the positions and the mean of projection_forward; any
    strides, 0 included. z is made again in registers, given or not."""
    statistics = mean is not None and not (grad_mean is None and grad_variance is None)
    plan = Plan.of(features, weight, position, statistics)
    # a missing one is never read
    other = weight if mean is None else mean
    pointers = dict(given_grad_ptr=grad_peak, position_ptr=position, f_ptr=features, mean_ptr=other)
    pointers["given_grad_mean_ptr"] = other if grad_mean is None else grad_mean
    pointers["given_grad_variance_ptr"] = other if grad_variance is None else grad_variance
    sizes: dict[str, float] = dict(has_mean=int(grad_mean is not None), has_variance=int(grad_variance is not None))
    sizes |= dict(share=1.0 / max(1, plan.batch * plan.pixels), D=plan.embed) | plan.image_sizes | plan.pooled_sizes
    run = _narrow_backward if plan.narrow else _backward
    with on_device(features):
        run(plan, pointers, sizes, weight, grad_features, grad_weight)


def _narrow_backward(
    plan: Plan,
    pointers: dict[str, Tensor],
    sizes: dict[str, float],
    weight: Tensor,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    features = pointers["f_ptr"]
    grad, chosen = Axes.of(pointers["given_grad_ptr"]), Axes.of(pointers["position_ptr"])
    out = features if grad_features is None else grad_features
    tile = plan.row("narrow_backward", False)
    per_image = ceil_div(plan.pixels, PAD)
    units = plan.batch * per_image
    ranges, range_units = _ranges(units, 2 * PROGRAMS)
    part = torch.empty((ranges, plan.DP, plan.channels), dtype=torch.float32, device=features.device)
    launch(
        "projection_narrow_backward",
        projection_narrow_backward_kernel,
        ranges,
        pointers | dict(given_weight_ptr=weight, out_ptr=out, part_ptr=part),
        sizes | dict(units=per_image, last_unit=units, range_units=range_units),
        grad.named("g", "d")
        | chosen.named("p", "d")
        | Axes.of(features).named("f", "c")
        | Axes.of(out).named("o", "c"),
        dict(DP=plan.DP, P=tile.cols, PAD=PAD, NARROW=plan.channels, GRAD_LAST=grad.last, POSITION_LAST=chosen.last),
        dict(STATISTICS=plan.statistics, WANT_FEATURES=grad_features is not None),
        warps=tile.warps,
        stages=tile.stages,
    )
    if grad_weight is not None:
        _reduce(plan, part, grad_weight)


def _backward(
    plan: Plan,
    pointers: dict[str, Tensor],
    sizes: dict[str, float],
    weight: Tensor,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    features = pointers["f_ptr"]
    grad, chosen = Axes.of(pointers["given_grad_ptr"]), Axes.of(pointers["position_ptr"])
    axes = Axes.of(features, vectors=True)
    split = plan.split_weight(weight)
    per_image = ceil_div(plan.pixels, PAD)
    units = plan.batch * per_image
    block = min(max(1, SCRATCH // (plan.DP * PAD)), max(1, units))
    chunks = plan.columns // plan.chunk
    ranges, range_units = _ranges(block, max(1, PROGRAMS // chunks))
    scratch = torch.empty((block * PAD, plan.DP), dtype=torch.float32, device=features.device)
    part = None
    if grad_weight is not None:
        part = torch.empty((ranges, plan.DP, plan.columns), dtype=torch.float32, device=features.device)
    channels = dict(C=plan.channels, units=per_image)
    constants = dict(DP=plan.DP, PAD=PAD, CC=plan.chunk, EVEN=plan.even)
    of_features = dict(CHANNELS_LAST=axes.last, UNIT=axes.unit, HAS_LOW=not plan.sixteen_bit)
    for first in range(0, units, block):
        last = min(first + block, units)
        tile = plan.row("pixel_gradient", axes.last)
        launch(
            "projection_pixel_gradient",
            projection_pixel_gradient_kernel,
            (last - first) * (PAD // tile.cols),
            pointers | split | dict(scratch_ptr=scratch),
            sizes | channels | dict(first_unit=first),
            grad.named("g", "d") | chosen.named("p", "d") | axes.named("f", "c"),
            constants | of_features | dict(P=tile.cols, GRAD_LAST=grad.last, POSITION_LAST=chosen.last),
            dict(STATISTICS=plan.statistics),
            warps=tile.warps,
            stages=tile.stages,
        )
        if grad_features is not None:
            out = Axes.of(grad_features, vectors=True)
            tile = plan.row("feature_gradient", out.last)
            tiles = (last - first) * (PAD // tile.cols)
            # programs of few chunks while the block has too few pixels to fill the card
            group = ceil_div(chunks, max(1, PROGRAMS // tiles))
            launch(
                "projection_feature_gradient",
                projection_feature_gradient_kernel,
                tiles * ceil_div(chunks, group),
                split | dict(scratch_ptr=scratch, out_ptr=grad_features),
                plan.image_sizes | channels | dict(first_unit=first, group=group),
                out.named("o", "c"),
                constants | dict(P=tile.cols, CHANNELS_LAST=out.last, UNIT=out.unit),
                warps=tile.warps,
                stages=tile.stages,
            )
        if part is not None:
            tile = plan.row("weight_gradient", axes.last)
            launch(
                "projection_weight_gradient",
                projection_weight_gradient_kernel,
                chunks * ranges,
                dict(scratch_ptr=scratch, f_ptr=features, part_ptr=part),
                plan.image_sizes | channels,
                dict(first_unit=first, last_unit=last, range_units=range_units, add=int(first > 0)),
                axes.named("f", "c"),
                constants | of_features | dict(FLAT=axes.flat(plan.grid)),
                warps=tile.warps,
                stages=tile.stages,
            )
    if part is not None and grad_weight is not None:
        _reduce(plan, part, grad_weight)


def _ranges(units: int, most: int) -> tuple[int, int]:
    """(ranges, units per range) of a two-step sum over the units, at most `most` ranges; none is empty."""
    per_range = max(1, ceil_div(units, most))
    return ceil_div(units, per_range), per_range


def _reduce(plan: Plan, part: Tensor, grad_weight: Tensor) -> None:
    ranges, DP, columns = part.shape
    launch(
        "projection_weight_reduce",
        projection_weight_reduce_kernel,
        ceil_div(DP * columns, 64),
        dict(part_ptr=part, out_ptr=grad_weight),
        dict(C=plan.channels, D=plan.embed, ranges=ranges, columns=columns),
        dict(DP=DP, R=32, E=64),
    )
