"""The test suite on the GPU backend, for as long as the time goes: counts, and every failure by name."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu.stage import BACKEND, Report, parser


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--smoke", action="store_true")
    options = made.parse_args()
    report = Report(options.out, options.seconds - 5)
    xml = Path(options.out).with_suffix(".xml")
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests", "--ignore=tests/triton", "--ignore=tests/test_packaging.py",
    "-q",
               "-p", "no:cacheprovider", f"--junit-xml={xml}", "--backends", BACKEND, "-rf", "-v",
               "--tb=line"]  # fmt: skip
    command += ["-m", "smoke"] if options.smoke else []
    outcome: dict[str, int] = {}
    failures: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        for word in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            if f" {word}" in line and "::" in line and "%]" in line:
                outcome[word] = outcome.get(word, 0) + 1
                if word in ("FAILED", "ERROR"):
                    failures.append(line.split()[0])
        if report.time_is_up:
            process.terminate()
            break
    process.wait()
    whole = xml.exists()
    if whole:
        root = ElementTree.parse(xml).getroot()
        suite = root if root.tag == "testsuite" else root[0]
        outcome = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    xml.unlink(missing_ok=True)
    report.add(smoke=options.smoke, finished=whole, outcome=outcome, failures=failures[:200])
    return report.done(len(failures))


if __name__ == "__main__":
    raise SystemExit(main())
