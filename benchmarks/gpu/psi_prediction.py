"""What the machine code of Ψ promises: the time of each level on an H200, from instructions and bytes.

    python -m benchmarks.gpu.psi_prediction --out benchmarks/results/gpu_psi_prediction.json --page docs/gpu.md

Needs no GPU (and must not be run under TRITON_INTERPRET). The forward kernel of evaluation is compiled for sm_90 at the
level's sizes. One turn of its loop is one chunk of channels (C > 4) or one offset in the windows; per SM and clock the
chip issues 4 warp instructions, multiplies 4096 16-bit FLOP and brings 64 bytes from the L2 cache. Least: the slowest of
the three and of the memory, everything overlapping; most: their sum. Not modelled: launches (two per level), latencies.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from benchmarks.gpu.prediction import CLOCK, FLOP, ISSUE, PROCESSORS
from benchmarks.gpu.psi import BYTES_PER_S, DTYPES, EMBED, LEVELS
from benchmarks.gpu.stage import measured_entries
from difnet_kernels.backends import triton as backend
from difnet_kernels.backends.triton.schedule_projection import widest
from tests.triton.compiled.compile_only import Binary, compiled_for

FROM_L2 = 64
BEGIN, END = "<!-- psi predicted -->", "<!-- /psi predicted -->"


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
    return next(binary for binary in found if binary.kernel == "psi_forward_kernel")


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
    memory = 1e6 * channels * side**2 * element / BYTES_PER_S
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


def measured() -> dict[tuple[int, str, str], float]:
    """Microseconds of one level by (side, dtype, level), evaluation, channels last; the newest from an H200."""
    return {
        (entry["side"], entry["dtype"], entry["level"]): entry["microseconds"]["median"]
        for entry in measured_entries("psi")
        if "microseconds" in entry and not entry["training"] and entry["channels_last"]
    }


def table(entries: list[dict[str, object]]) -> str:
    seen = measured()
    lines = [
        "| image | level | input | tile | programs | registers, shared KiB, programs/SM | turns | "
        "issue : products : L2, cycles/turn | f once, µs | predicted, µs | measured, µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        cycles = e["cycles"]
        assert isinstance(cycles, dict)
        time = seen.get((e["side"], e["dtype"], e["level"]))  # type: ignore[arg-type]
        lines.append(
            f"| {e['side']}² | {e['level']} | {e['dtype']} | {e['tile']} | {e['programs']} | "
            f"{e['registers']}, {e['shared'] / 1024:.0f}, {e['programs_per_sm']} | {e['turns']} | "  # type: ignore[operator]
            f"{cycles['issue']:.0f} : {cycles['products']:.0f} : {cycles['l2']:.0f} | {e['floor_us']:.1f} | "
            f"{e['least_us']:.1f} to {e['most_us']:.1f} | {'not measured' if time is None else f'{time:.1f}'} |"
        )
    for side in LEVELS:
        for dtype in ("bf16", "fp32"):
            five = [e for e in entries if e["side"] == side and e["dtype"] == dtype]
            floor, least, most = (sum(e[key] for e in five) for key in ("floor_us", "least_us", "most_us"))  # type: ignore[misc]
            time = seen.get((side, dtype, "all five"))
            said = "not measured" if time is None else f"{time:.1f}"
            lines.append(
                f"| {side}² | all five | {dtype} | | | | | | {floor:.1f} | {least:.0f} to {most:.0f} | {said} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="a document whose table between the markers is written again")
    parser.add_argument("--read", action="store_true", help="take the predictions from --out instead of compiling")
    options = parser.parse_args()
    if options.read:
        entries = json.loads(options.out.read_text(encoding="utf-8"))["entries"]
    else:
        entries = [
            {"side": side, "level": f"{C} x {n}²", "dtype": dtype, **predict(C, n, grid, dtype)}
            for side, (shapes, grid) in LEVELS.items()
            for dtype in ("bf16", "fp32")
            for C, n in shapes
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"entries": entries}, indent=1) + "\n", encoding="utf-8")
    if options.page:
        text = options.page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        options.page.write_text(f"{before}{BEGIN}\n{table(entries)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
