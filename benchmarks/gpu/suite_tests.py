"""The test suite on the GPU backend, for as long as the time goes: counts, and every failure by name.

Every file is tested in a process of its own, several at a time.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from benchmarks.gpu.processes import Job, ended
from benchmarks.gpu.stage import BACKEND, Report, parser
from benchmarks.gpu_suite import ROOT

TESTS = ROOT / "tests"
# the C++ sources: nothing of it runs on a GPU
ELSEWHERE = {"test_faults.py"}
NETWORKS = "models/test_networks_on_gpu.py"
NOTHING_CHOSEN = 5  # pytest's status where nothing of a file is in the subset
_ENDED = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")


def files() -> list[str]:
    """Names below tests/ of what runs on a GPU."""
    walks = [path for room in ("kernels", "ops") for path in sorted((TESTS / room).glob("test_*.py"))]
    return [*[str(path.relative_to(TESTS)) for path in walks if path.name not in ELSEWHERE], NETWORKS]


def outcome(job: Job) -> tuple[Counter[str], list[str]]:
    """How many tests ended how, so far, and the names of those that failed."""
    found = [match for line in job.said.splitlines() if (match := _ENDED.match(line))]
    failures = [match[1] for match in found if match[2] in ("FAILED", "ERROR")]
    return Counter(match[2].lower() for match in found), failures


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--smoke", action="store_true", help="the quick subset")
    made.add_argument("--files", nargs="*", help="some files of tests/ only")
    options = made.parse_args()
    report = Report(options.out, options.seconds)
    jobs = []
    for file in options.files or files():
        command = [sys.executable, "-m", "pytest", f"tests/{file}", "-v", "--tb=short", "-p", "no:cacheprovider"]
        command += ["--backends", BACKEND, *(["-m", "smoke"] if options.smoke else [])]
        jobs.append(Job({"file": file}, command, report.logs / f"{Path(file).stem}.log"))
    failed = 0
    for job in ended(jobs, report.end):
        counts, failures = outcome(job)
        facts = {**job.about, "finished": job.status is not None, "outcome": counts, "failures": failures}
        if job.status is None:
            failed += bool(failures)
            report.left_out(**facts)
            continue
        passed = job.status in (0, NOTHING_CHOSEN)
        failed += not passed
        report.add(**facts, status=job.status, **({} if passed or failures else {"reason": job.last_words}))
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
