"""The test suite on the GPU backend, for as long as the time goes: counts, and every failure by name.

Most of the time goes into compiling kernels, so several files are tested at a time, each in a process of its own; Triton's
cache on disk lets them share what one of them has compiled.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.gpu.stage import BACKEND, Report, parser

ROOT = Path(__file__).parents[2]
AT_ONCE = 6
# what is built and written, and the C++ sources: nothing of it runs on a GPU
ELSEWHERE = {"test_packaging.py", "test_documents.py", "test_faults.py"}
_ENDED = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")


@dataclass
class Run:
    """One file's tests in progress."""

    file: str
    process: subprocess.Popen[str]
    log: TextIO

    def outcome(self) -> tuple[Counter[str], list[str]]:
        """How many tests ended how, so far, and the names of those that failed."""
        text = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        ended = [found for line in text.splitlines() if (found := _ENDED.match(line))]
        failures = [found[1] for found in ended if found[2] in ("FAILED", "ERROR")]
        return Counter(found[2].lower() for found in ended), failures


def start(file: str, folder: Path, *, smoke: bool) -> Run:
    log = (folder / f"{Path(file).stem}.log").open("w", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", f"tests/{file}", "-v", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--backends", BACKEND, *(["-m", "smoke"] if smoke else [])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True)
    return Run(file, process, log)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--smoke", action="store_true", help="the quick subset")
    made.add_argument("--files", nargs="*", help="some files of tests/ only")
    options = made.parse_args()
    report = Report(options.out, options.seconds - 5)
    folder = options.out.with_name(f"{options.out.stem}_logs")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = options.files or sorted(p.name for p in (ROOT / "tests").glob("test_*.py") if p.name not in ELSEWHERE)
    running: list[Run] = []
    failed = 0
    while (waiting or running) and not report.time_is_up:
        while waiting and len(running) < AT_ONCE:
            running.append(start(waiting.pop(0), folder, smoke=options.smoke))
        time.sleep(0.2)
        for run in [run for run in running if run.process.poll() is not None]:
            running.remove(run)
            outcome, failures = run.outcome()
            # 5: nothing of this file is in the subset
            failed += run.process.returncode not in (0, 5)
            report.add(file=run.file, finished=True, status=run.process.returncode, outcome=outcome, failures=failures)
    for run in running:
        run.process.terminate()
        run.process.wait()
        outcome, failures = run.outcome()
        failed += bool(failures)
        report.left_out(file=run.file, finished=False, outcome=outcome, failures=failures)
    for file in waiting:
        report.left_out(file=file, finished=False)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
