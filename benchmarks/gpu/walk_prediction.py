"""What the machine code promises: the time of each walk kernel on an H200, from its instructions and the chip's rates.

    python -m benchmarks.gpu.prediction --out benchmarks/results/gpu_prediction.json --page docs/gpu.md

Needs no GPU (and must not be run under TRITON_INTERPRET): the kernels are compiled for sm_90 at the sizes of the case, with
the programs per row tile that the plan would choose. One turn of a kernel's loop is one column tile; per SM and clock the
chip issues 4 warp instructions, multiplies 4096 16-bit FLOP and takes 16 exponentials. If everything overlaps, the slowest
of the three is the time (least); if the products wait for the rest, their sum (most). Both branches of P_ji are counted, so
the backward's instructions are an upper bound. Measured times come from any
kernels.json of an H200 in results; without one: "not measured".
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import triton

from benchmarks.cases import CASES, Case
from benchmarks.cost import BEST_FORMS, Widths, backward_cost, forward_cost, h200, pairs
from benchmarks.gpu.stage import measured_entries
from difnet_kernels.backends import triton as backend
from tests.triton.compiled.compile_only import Binary, compiled_for

PROCESSORS, CLOCK = 132, 1.83e9
ISSUE, FLOP, EXPS = 4, 4096, 16
NAMES = ("eval505", "train321", "eval505_h5", "context60", "batch4_16k")
SETTINGS = (("bf16", torch.bfloat16, "high"), ("fp32", torch.float32, "high"), ("fp32", torch.float32, "medium"))
BEGIN, END = "<!-- predicted -->", "<!-- /predicted -->"


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


def measured() -> dict[tuple[str, str, str, str], float]:
    """Microseconds of one walk by (case, dtype, precision, kernel), the newest from an H200."""
    return {
        (entry["case"], entry["dtype"], entry["precision"], kernel): taken / CASES[entry["case"]].walks
        for entry in measured_entries("kernels")
        for kernel in ("walk_forward", "walk_backward")
        if (taken := entry.get(kernel, {}).get("microseconds"))
    }


def table(entries: list[dict[str, object]]) -> str:
    seen = measured()
    lines = [
        "| case | input | kernel | tile, warps | programs per row tile | registers, shared KiB, programs/SM | "
        "issue : products : exps, cycles/tile | floor, µs | predicted, µs | measured, µs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        cycles = e["cycles"]
        assert isinstance(cycles, dict)
        time = seen.get((e["case"], e["dtype"], e["precision"], e["kernel"]))  # type: ignore[arg-type]
        lines.append(
            f"| {e['case']} | {e['dtype']} {e['precision']} | {e['kernel']} | {e['tile']}, {e['warps']} | "
            f"{e['sharing']} | "
            f"{e['registers']}, {e['shared'] / 1024:.0f}, {e['programs_per_sm']} | "  # type: ignore[operator]
            f"{cycles['issue']:.0f} : {cycles['products']:.0f} : {cycles['exps']:.0f} | {e['floor_us']:.1f} | "
            f"{e['least_us']:.0f} to {e['most_us']:.0f} | {'not measured' if time is None else f'{time:.1f}'} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="a document whose table between the markers is written again")
    parser.add_argument("--read", action="store_true", help="take the predictions from --out instead of compiling")
    options = parser.parse_args()
    if options.read:
        made = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        entries = [
            {"case": name, "dtype": dtype, "precision": precision, **predict(CASES[name], binary)}
            for dtype, kind, precision in SETTINGS
            for name in NAMES
            for binary in compiled(CASES[name], kind, precision)
        ]
        made = {"triton": triton.__version__, "entries": entries}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if options.page:
        text = options.page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        options.page.write_text(
            f"{before}{BEGIN}\nCompiled by Triton {made['triton']}.\n\n{table(made['entries'])}\n{END}{after}",
            encoding="utf-8",
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
