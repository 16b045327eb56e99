"""Tables of what the machine code promises (`benchmarks.gpu.prediction`) beside what the newest run on an H200 measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.psi import LEVELS
from benchmarks.results import entries_on_h200

WALK, PSI = "gpu_prediction.json", "gpu_psi_prediction.json"


def walk(folder: Path) -> str:
    """Every walk kernel, one walk."""
    seen = {
        (entry["case"], entry["dtype"], entry["precision"], kernel): taken / CASES[entry["case"]].walks
        for entry in entries_on_h200("kernels", folder)
        for kernel in ("walk_forward", "walk_backward")
        if (taken := entry.get(kernel, {}).get("microseconds"))
    }
    lines = [
        "| case | input | kernel | tile, warps | programs per row tile | registers, shared KiB, programs/SM | "
        "issue : products : exps, cycles/tile | floor, µs | predicted, µs | measured, µs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in _entries(folder / WALK):
        cycles = e["cycles"]
        lines.append(
            f"| {e['case']} | {e['dtype']} {e['precision']} | {e['kernel']} | {e['tile']}, {e['warps']} | "
            f"{e['sharing']} | "
            f"{e['registers']}, {e['shared'] / 1024:.0f}, {e['programs_per_sm']} | "
            f"{cycles['issue']:.0f} : {cycles['products']:.0f} : {cycles['exps']:.0f} | {e['floor_us']:.1f} | "
            f"{e['least_us']:.0f} to {e['most_us']:.0f} | "
            f"{_time(seen.get((e['case'], e['dtype'], e['precision'], e['kernel'])))} |"
        )
    return _compiled_by(folder / WALK) + "\n".join(lines)


def psi(folder: Path) -> str:
    """Every level of Ψ in evaluation, channels last; then the five together."""
    seen = {
        (entry["side"], entry["dtype"], entry["level"]): entry["microseconds"]["median"]
        for entry in entries_on_h200("psi", folder)
        if "microseconds" in entry and not entry["training"] and entry["channels_last"]
    }
    lines = [
        "| image | level | input | tile | programs | registers, shared KiB, programs/SM | turns | "
        "issue : products : L2, cycles/turn | f once, µs | predicted, µs | measured, µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = _entries(folder / PSI)
    for e in found:
        cycles = e["cycles"]
        lines.append(
            f"| {e['side']}² | {e['level']} | {e['dtype']} | {e['tile']} | {e['programs']} | "
            f"{e['registers']}, {e['shared'] / 1024:.0f}, {e['programs_per_sm']} | {e['turns']} | "
            f"{cycles['issue']:.0f} : {cycles['products']:.0f} : {cycles['l2']:.0f} | {e['floor_us']:.1f} | "
            f"{e['least_us']:.1f} to {e['most_us']:.1f} | {_time(seen.get((e['side'], e['dtype'], e['level'])))} |"
        )
    for side in LEVELS:
        for dtype in dict.fromkeys(e["dtype"] for e in found):
            five = [e for e in found if e["side"] == side and e["dtype"] == dtype]
            floor, least, most = (sum(e[key] for e in five) for key in ("floor_us", "least_us", "most_us"))
            said = _time(seen.get((side, dtype, "all five")))
            lines.append(
                f"| {side}² | all five | {dtype} | | | | | | {floor:.1f} | {least:.0f} to {most:.0f} | {said} |"
            )
    return _compiled_by(folder / PSI) + "\n".join(lines)


def _entries(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []


def _compiled_by(path: Path) -> str:
    if not path.exists():
        return "No prediction yet.\n\n"
    return f"Compiled by Triton {json.loads(path.read_text(encoding='utf-8'))['triton']}.\n\n"


def _time(microseconds: float | None) -> str:
    return "not measured" if microseconds is None else f"{microseconds:.1f}"
