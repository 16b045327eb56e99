"""Runs of pytest that share one start: torch is imported once, and each run is a fork, whose library and whose end are its own.

A run on its own would spend more time on importing torch than on a few tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120  # seconds of a run


@dataclass(frozen=True)
class Ended:
    """As subprocess has it: a status below zero is the signal that ended the run, SIGKILL if it was still running after
    PATIENCE."""

    returncode: int
    stdout: str


class Pytest:
    """A process in `folder` that has torch and nothing of what is tested; it runs one thing after the other."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder / f"forked-{id(self):x}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked"],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"arguments": list(arguments), "environment": dict(environment), "log": str(self.log)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process of pytest in {self.log.parent} has ended"
        return Ended(int(answer), self.log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        self.process.communicate(timeout=60)  # the end of its input is its end


def run_and_leave(asked: dict[str, object]) -> None:
    """In a child: it ends here, whatever it does."""
    status = 70
    try:
        os.environ.update(asked["environment"])  # type: ignore[arg-type]
        log = os.open(str(asked["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = int(pytest.main(asked["arguments"]))  # type: ignore[arg-type]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """Of a child that has ended, if need be by force: a test that hangs in a kernel hears no signal that Python handles."""
    end = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    import pytest
    import torch  # noqa: F401  (what all runs need)

    for line in sys.stdin:
        if (child := os.fork()) == 0:
            run_and_leave(json.loads(line))
        print(status_of(child), flush=True)
