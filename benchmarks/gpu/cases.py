"""Questions of `benchmarks.questions` on the GPU, in the format of `benchmarks.record`, so the tables are made from
these files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.gpu.stage import parser
from benchmarks.gpu_suite import LEFT_OUT
from benchmarks.peers import UNCOMPILED
from benchmarks.questions import QUESTIONS, all_tasks
from benchmarks.record import record
from benchmarks.tasks import DTYPES, FAILED, NOT_MEASURED, Task


def remaining(tasks: Iterable[Task], out: Path) -> list[Task]:
    """The tasks that no earlier part of the results, OUT or OUT's name with a number, has in full.

    OUT becomes such a part, so that it can be written again.
    """
    parts = sorted(out.parent.glob(f"{out.stem}.*.json"))
    if out.exists():
        parts.append(out.rename(out.with_name(f"{out.stem}.{len(parts) + 1}.json")))
    rows = [row for part in parts for row in json.loads(part.read_text(encoding="utf-8"))["rows"]]
    seen = {(row["task"], row["contender"]) for row in rows if row["status"] not in (NOT_MEASURED, FAILED)}
    return [task for task in tasks if any((str(task), name) not in seen for name in task.contenders)]


def chosen(tasks: Iterable[Task], peers: str, case: str | None, dtype: str | None) -> list[Task]:
    found = [task for task in tasks if case in (None, task.case.name) and dtype in (None, task.dtype)]
    if peers == "all":
        return found
    return [replace(task, contenders=tuple(name for name in task.contenders if name in UNCOMPILED)) for task in found]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--question", choices=QUESTIONS, default="cascade")
    # nobody is measured without ours and the quick ones: a ratio is of times from one run
    made.add_argument("--peers", choices=("quick", "all"), default="all", help="quick: who need not compile")
    made.add_argument("--case", choices=CASES, help="this one alone")
    made.add_argument("--dtype", choices=DTYPES, help="this one alone")
    options = made.parse_args()
    tasks = chosen(all_tasks("cuda", (options.question,)), options.peers, options.case, options.dtype)
    rows = record(remaining(tasks, options.out), "cuda", options.out, minutes=options.seconds / 60)
    if any(row.status == FAILED for row in rows):
        return 1
    return LEFT_OUT if any(row.status == NOT_MEASURED for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
