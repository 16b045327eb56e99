"""What the machine code promises: the time of each walk kernel on an H200, from its instructions and the chip's rates.

The kernels are compiled for sm_90 at the sizes of the case, with the programs per row tile that the plan would choose. One
turn of a kernel's loop is one column tile; per SM and clock the chip issues 4 warp instructions, multiplies 4096 16-bit
FLOP and takes 16 exponentials. If everything overlaps, the slowest of the three is the time (least); if the products wait
for the rest, their sum (most). Both branches of P_ji are counted, so the backward's instructions are an upper bound.
"""

from __future__ import annotations

import math

import torch

from benchmarks.cases import CASES, Case
from benchmarks.cost import (
    BEST_FORMS,
    CLOCK,
    EXPS,
    FLOP,
    ISSUE,
    PROCESSORS,
    Widths,
    backward_cost,
    forward_cost,
    h200,
    pairs,
)  # fmt: skip
from benchmarks.gpu.ours import SETTINGS
from benchmarks.tasks import DTYPES
from difnet_kernels.backends import triton as backend
from tests.triton.compiled.compile_only import Binary, compiled_for

NAMES = ("eval505", "train321", "eval505_h5", "context60", "batch4_16k")


def compiled(case: Case, dtype: torch.dtype, precision: str) -> list[Binary]:
    """The walk kernels of one walk of the case, at its sizes."""
    B, K, N, D = case.batch, case.classes, case.nodes, case.embed
    seed, psi = torch.empty((B, K, N), dtype=dtype), [torch.empty((B, D, N), dtype=dtype)]
    gates, walked, row_lse = torch.empty(1), torch.empty((1, B, N, K)), torch.empty((1, B, N))
    with compiled_for(90, PROCESSORS) as found:
        backend.cascade_forward(
            None, seed, psi, gates, gates, precision, states=seed[None], walked=walked, row_lse=row_lse
        )
        backend.cascade_backward(
            seed[None], None, seed, psi, gates, gates, walked, row_lse, precision, grad_state=None, grad_seed=seed,
            grad_psi=psi, grad_mu=gates, grad_beta=gates,
        )  # fmt: skip
    return [binary for binary in found if binary.kernel in ("walk_forward_kernel", "walk_backward_kernel")]


def predict(case: Case, binary: Binary) -> dict[str, object]:
    """Cycles of one column tile on one SM, and microseconds of one walk."""
    tile = binary.constants
    rows, cols = tile["I"], tile["J"]
    forward = binary.kernel == "walk_forward_kernel"
    logit, value = tile["LOGIT_PRODUCTS"] * tile["DP"], tile["VALUE_PRODUCTS"] * tile["KP"]
    depth = logit + value if forward else 2 * logit + 3 * value
    issue = sum(binary.loop.values()) * binary.warps / ISSUE
    products = 2 * rows * cols * depth / FLOP
    exps = binary.loop_count("MUFU.EX2") * 32 * binary.warps / EXPS
    row_tiles, columns = math.ceil(case.nodes / rows), math.ceil(case.nodes / cols)
    sharing = binary.programs // (case.batch * row_tiles)
    turns = math.ceil(binary.programs / PROCESSORS) * math.ceil(columns / sharing)
    least, most = max(issue, products, exps), products + max(issue, exps)
    chip, widths = h200(), Widths.of(case, h200())
    cost = forward_cost(widths, BEST_FORMS["gpu"][0]) if forward else backward_cost(widths, BEST_FORMS["gpu"][1])
    return {
        "kernel": binary.kernel.removesuffix("_kernel"),
        "tile": f"{rows}x{cols}",
        "warps": binary.warps,
        "stages": binary.stages,
        "sharing": sharing,
        "registers": binary.registers,
        "shared": binary.shared,
        "programs_per_sm": binary.programs_per_sm,
        "cycles": {"issue": issue, "products": products, "exps": exps},
        "least_us": 1e6 * turns * least / CLOCK,
        "most_us": 1e6 * turns * most / CLOCK,
        "floor_us": 1e6 * pairs(case.but(walks=1)) * cost.seconds(chip),
    }


def entries() -> list[dict[str, object]]:
    """Every walk kernel of every case."""
    return [
        {"case": name, "dtype": dtype, "precision": precision, **predict(CASES[name], binary)}
        for dtype, precision in SETTINGS
        for name in NAMES
        for binary in compiled(CASES[name], DTYPES[dtype], precision)
    ]
