"""Measure everything and keep it: `python -m benchmarks.record` writes benchmarks/results/cpu_KIND.json.

On a quiet machine the default takes at most twelve minutes on two cores and asks everything; `--minutes 5` asks every
question once. The file is rewritten after every task, so a run that is cut short loses nothing; tasks that the time did
not suffice for say so in their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine, show
from benchmarks.device import Device, device
from benchmarks.peers import backend_in_use
from benchmarks.questions import QUESTIONS, all_tasks
from benchmarks.results import FOLDER, SCHEMA, machine_of
from benchmarks.tasks import FAILED, NOT_MEASURED, Row, Task

MINUTES = 11.0  # the last task may take another half minute
BUSY = 0.5  # a load above this before the start means that somebody else is computing


def header(on: Device) -> dict[str, Any]:
    """What a results file says before its rows."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    peak = None if on.on_gpu else machine.cpu_peak()
    about = {"schema": SCHEMA, "date": date, "commit": machine.commit(), "backend": backend_in_use(on)}
    unit = None if on.on_gpu else machine.unit_peak()
    return {**about, "machine": machine.describe(on), "peak": peak, **({"unit_peak": unit} if unit else {})}


def write(path: Path, head: dict[str, Any], rows: Iterable[dict[str, Any]], *, complete: bool) -> None:
    """Write a results file as a whole or not at all."""
    # one row per line: a changed number is a changed line
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    facts = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(f'{{\n{facts},\n "complete": {json.dumps(complete)},\n "rows": [\n  {lines}\n ]\n}}\n', "utf-8")
    os.replace(partial, path)


def not_measured(task: Task, minutes: float) -> list[Row]:
    """Rows that say that the run ended before the task."""
    reason = f"the run was limited to {minutes:g} minutes"
    return [task.row(name, show.title_of(name), status=NOT_MEASURED, reason=reason) for name in task.contenders]


def record(tasks: Sequence[Task], on: Device, path: Path, *, minutes: float) -> list[Row]:
    """Measure `tasks` until `minutes` are over; the rows of every task, measured or not."""
    start, head = time.monotonic(), header(on)
    rows: list[Row] = []
    for number, task in enumerate(tasks, 1):
        spent = time.monotonic() - start
        if spent > 60 * minutes:
            rows += not_measured(task, minutes)
            continue
        found = task.measure(on)
        print(f"[{number}/{len(tasks)}, {spent:.0f} s]", show.task(str(task), found, machine_of(head)), flush=True)
        rows += found
        write(path, head, [row.as_dict() for row in rows], complete=False)
    if head["peak"]:
        # the clock wanders: a fraction of peak is taken of the highest rate seen around the measurements
        head["peak"] = max(head["peak"], machine.cpu_peak() or head["peak"], key=lambda peak: peak["flop_per_s"])
    head["seconds"] = round(time.monotonic() - start)
    write(path, head, [row.as_dict() for row in rows], complete=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    default = FOLDER / f"cpu_{machine.processor_kind()}.json"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help=f"the results file (default {default.name})")
    parser.add_argument("--only", nargs="*", default=(), choices=tuple(QUESTIONS), help="some questions only")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"begin no task later (default {MINUTES:g})")
    options = parser.parse_args(arguments)
    if machine.load() > BUSY:
        told = f"warning: load {machine.load():.1f} before the start; numbers of a busy machine are not worth keeping"
        print(told, file=sys.stderr)
    rows = record(all_tasks(False, tuple(options.only)), device("cpu"), options.out, minutes=options.minutes)
    failed = [row for row in rows if row.status == FAILED]
    for row in failed:
        print(f"FAILED {row.task} {row.title}: {row.reason}", file=sys.stderr)
    left = sum(row.status == NOT_MEASURED for row in rows)
    print(f"{options.out}: {len(rows)} rows, {len(failed)} failed, {left} left out. Next: python -m benchmarks.report")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
