"""What the machine code of Ψ promises: the time of each level on an H200, from instructions and bytes.

The forward kernel of evaluation is compiled for sm_90 at the level's sizes. One turn of its loop is one chunk of channels
(C > 4) or one offset in the windows; per SM and clock the chip issues 4 warp instructions, multiplies 4096 16-bit FLOP and
brings 64 bytes from the L2 cache. Least: the slowest of the three and of the memory, everything overlapping; most: their
sum. Not modelled: launches (two per level), latencies.
"""

from __future__ import annotations

import math

import torch

from benchmarks.cost import CLOCK, FLOP, ISSUE, PROCESSORS, h200
from benchmarks.psi import GRIDS, LEVELS
from benchmarks.tasks import DTYPES
from difnet_kernels.backends import triton as backend
from difnet_kernels.backends.triton.projection.host import widest
from tests.triton.compiled.compile_only import Binary, compiled_for

FROM_L2 = 64
EMBED = GRIDS[505].embed


def compiled(channels: int, side: int, grid: int, dtype: torch.dtype) -> Binary:
    features = torch.empty((1, channels, 1, side, side), dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last_3d)
    peak = torch.empty((1, 1, grid, grid, EMBED)).permute(0, 4, 1, 2, 3)
    position = torch.empty((1, 1, grid, grid, EMBED), dtype=torch.int32).permute(0, 4, 1, 2, 3)
    with compiled_for(90, PROCESSORS) as found:
        backend.projection_forward(
            features, torch.empty(EMBED, channels), torch.empty(EMBED), peak=peak, position=position, mean=None,
            variance=None,
        )  # fmt: skip
    return next(binary for binary in found if binary.kernel == "projection_forward_kernel")


def predict(channels: int, side: int, grid: int, dtype: str) -> dict[str, object]:
    """Cycles of one turn on one SM, and microseconds of one level."""
    binary = compiled(channels, side, grid, DTYPES[dtype])
    tile = binary.constants
    element = DTYPES[dtype].itemsize
    offsets = widest(side, grid) ** 2
    narrow = tile["NARROW"] > 0
    turns = offsets * (1 if narrow else math.ceil(channels / tile["CC"]))
    issue = sum(binary.loop.values()) * binary.warps / ISSUE
    products = 0.0 if narrow else 2 * tile["DP"] * tile["J"] * tile["CC"] * (3 if element == 4 else 2) / FLOP
    weights = 0 if narrow else 4 * tile["DP"] * tile["CC"]
    features = element * tile["J"] * (channels if narrow else tile["CC"])
    level2 = (weights + features) / FROM_L2
    rounds = binary.programs / PROCESSORS
    turns_of_an_sm = turns * max(1.0, rounds)
    memory = 1e6 * channels * side**2 * element / h200().bytes_per_s
    on_chip = [1e6 * turns_of_an_sm * cycles / CLOCK for cycles in (issue, products, level2)]
    return {
        "tile": f"{tile['J']} pixels, {binary.warps} warps",
        "programs": binary.programs,
        "registers": binary.registers,
        "shared": binary.shared,
        "programs_per_sm": binary.programs_per_sm,
        "turns": turns,
        "cycles": {"issue": issue, "products": products, "l2": level2},
        "floor_us": memory,
        "least_us": max(memory, *on_chip),
        "most_us": memory + sum(on_chip),
    }


def entries() -> list[dict[str, object]]:
    """Every level of Ψ."""
    return [
        {"side": side, "level": f"{C} x {n}²", "dtype": dtype, **predict(C, n, GRIDS[side].grid[0], dtype)}
        for side, shapes in LEVELS.items()
        for dtype in ("bf16", "fp32")
        for C, n in shapes
    ]
