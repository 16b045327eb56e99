"""What does the matrix unit of this processor win, and from which sizes on? `python -m benchmarks.matrix_unit`

Two processes take turns on the same problems, one with the vector kernels and one with the unit. The end is the lines that
csrc/cpu/dispatch.h should have: of each dtype, the smallest sizes from which on the unit was never the slower one, in
either direction. docs/performance.md says what to do with them. On a quiet machine it takes ten minutes.

--unit amx_model tries the command where there is no unit; the times of a model mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from benchmarks import machine, show
from benchmarks.cases import SWEEP, Case
from benchmarks.compare import alternate
from benchmarks.questions import DIRECTIONS
from benchmarks.worker import PSI, ROOT, Problem, Worker
from difnet_kernels.backends.native import instruction_sets

SCALARS = {"fp32": "Float", "bf16": "BFloat16", "fp16": "Half"}
WALKS: Sizes = {
    "nodes": (64, 128, 256, 512, 1024, 4096),
    "classes": (1, 8, 21, 60),
    "embed": (8, 16, 32, 64, 128, 384),
}
CHANNELS: Sizes = {"channels": (3, 64, 128, 256, 512, 1024, 2048)}
QUICK: Sizes = {"nodes": (64, 128), "classes": (21,), "embed": (64,), "channels": (64, 128)}
ENOUGH = 0.98  # of the vectors' speed is as fast, on a machine that is never quite quiet
Sizes = Mapping[str, Sequence[int]]
Rates = dict[str, dict[int, float]]  # of each size that was swept: the least ratio of both directions


def walk(size: str, value: int) -> Case:
    return SWEEP.but(**{size: value})


def psi(_: str, channels: int) -> Case:
    """A deep level of 321², where every window is a pixel."""
    return Case("psi", 1, 41 * 41, 64, channels, 1)


def rates(sizes: Sizes, case_of: Callable[[str, int], Case], dtype: str, prefix: str, rounds: int,
          vectors: Worker, unit: Worker) -> Rates:  # fmt: skip
    found: Rates = {}
    for size, values in sizes.items():
        for value in values:
            each = []
            for direction in DIRECTIONS:
                problem: Problem = (case_of(size, value), dtype, prefix + direction)
                times = alternate(vectors, unit, problem, rounds)
                of_vectors, of_unit = (times[worker.name].median for worker in (vectors, unit))
                each.append(of_vectors / of_unit)
                what = f"{'psi' if prefix else 'walk'} {dtype} {size}={value} {direction}"
                print(f"{what:<44} vectors {show.seconds(of_vectors):>9}  {unit.name} {show.seconds(of_unit):>9}  "
                      f"{each[-1]:6.2f}x", flush=True)  # fmt: skip
            found.setdefault(size, {})[value] = min(each)
    return found


def bound(found: dict[int, float]) -> int | None:
    """The smallest size from which on the unit is as fast; None where it is not at the largest one."""
    best = None
    for value in sorted(found, reverse=True):
        if found[value] < ENOUGH:
            break
        best = value
    return best


def line(unit: str, dtype: str, found: Rates, on: str) -> str:
    """A row of dispatch.h; as a comment where the unit does not win."""
    bounds = {size: bound(of_size) for size, of_size in found.items()}
    wins = [ratio for of_size in found.values() for ratio in of_size.values() if ratio >= ENOUGH]
    if None in bounds.values():
        lost = ", ".join(size for size, least in bounds.items() if least is None)
        return f"    // {unit}, {dtype}: no row, the unit loses at the largest {lost}; {on}"
    numbers = ", ".join(str(bounds[size]) for size in found)
    certificate = f"{on}: {min(wins):.2f} to {max(wins):.2f} times the vectors"
    return f'    {{"{unit}", ScalarType::{SCALARS[dtype]}, {numbers}, "{certificate}"}},'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix_unit", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--unit", help="an instruction set (default: that of this processor's matrix unit)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each problem (default 15)")
    parser.add_argument("--quick", action="store_true", help="two sizes of each, to see that it runs")
    options = parser.parse_args(arguments)
    units = [name for name in machine.UNITS if name in instruction_sets()]
    if options.unit is None and not units:
        print(
            "this processor has no matrix unit that the library knows; --unit amx_model tries the command on the model"
        )
        return 1
    unit = options.unit or units[0]
    about = machine.describe_cpu()
    on = f"{about}, {datetime.now(timezone.utc):%Y-%m-%d}"
    peak = machine.unit_peak(unit, steps=20 if options.quick else 2_000_000)
    if peak is None:
        print(f"--unit must be one of {', '.join(instruction_sets())} that has a matrix unit or its model; got {unit}")
        return 1
    print(f"{about}, {unit}: {peak['flop_per_s'] / 1e9:.4g} GFLOP/s ({peak['how']})")
    if unit not in machine.UNITS:
        print(f"{unit} IS A MODEL: its times say nothing about a processor")
    walks = {size: QUICK[size] for size in WALKS} if options.quick else WALKS
    channels = {size: QUICK[size] for size in CHANNELS} if options.quick else CHANNELS
    lines: dict[str, list[str]] = {"kUnitWalks": [], "kUnitProjections": []}
    with Worker("vectors", ROOT, DIFNET_KERNELS_ISA="") as vectors, Worker(unit, ROOT, DIFNET_KERNELS_ISA=unit) as own:
        for dtype in SCALARS:
            found = rates(walks, walk, dtype, "", options.rounds, vectors, own)
            lines["kUnitWalks"].append(line(unit, dtype, found, on))
            found = rates(channels, psi, dtype, PSI, options.rounds, vectors, own)
            lines["kUnitProjections"].append(line(unit, dtype, found, on))
    for table, rows in lines.items():
        print(f"\n{table} in csrc/cpu/dispatch.h:", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
