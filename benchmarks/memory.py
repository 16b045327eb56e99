"""How much does the process grow during one cascade? Each contender in a process of its own, after a small warm-up.

`python -m benchmarks.memory TASK-AS-JSON` is that process; it prints the growth in bytes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.cascade import runner
from benchmarks.cases import Case
from benchmarks.inputs import make_inputs
from benchmarks.peers import CONTENDERS, Setting
from benchmarks.tasks import DTYPES, FAILED, MEASURED, UNAVAILABLE, Row, Task

PATIENCE = 120.0


@dataclass(frozen=True)
class MemoryTask(Task):
    """Peak extra memory: what the process (or the GPU's allocator) holds more at the worst moment than before the
    call."""

    def measure(self, device: str) -> list[Row]:
        return [self._measure(name, device) for name in self.contenders]

    def _measure(self, name: str, device: str) -> Row:
        title = CONTENDERS[name].title
        reason = CONTENDERS[name].why_not(Setting(self.case, DTYPES[self.dtype], device, self.direction))
        if reason:
            return self.row(name, title, status=UNAVAILABLE, reason=reason)
        asked = {
            "case": asdict(self.case), "kind": self.kind, "dtype": self.dtype, "direction": self.direction,
            "contender": name, "device": device,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asked)]
        root = Path(__file__).parent.parent
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=root)
        except subprocess.TimeoutExpired:
            return self.row(name, title, status=UNAVAILABLE, reason=f"not done after {PATIENCE:.0f} s")
        if done.returncode != 0:
            status = FAILED if name == "ours" else UNAVAILABLE
            told = done.stderr.strip().splitlines()
            return self.row(name, title, status=status, reason=(told[-1] if told else "killed: out of memory")[:160])
        return self.row(name, title, status=MEASURED, memory=int(done.stdout.split()[-1]))


def growth(case: Case, kind: str, dtype: str, direction: str, contender: str, device: str) -> int:
    """Bytes by which this process grows during one call of `contender`."""
    setting = Setting(case, DTYPES[dtype], device, direction)
    cascade = CONTENDERS[contender].build(setting)
    # libraries, thread pools and compiled code are there before the call that counts; 4² nodes leave no trace
    runner(cascade, make_inputs(case.but(nodes=16, batch=1), kind, DTYPES[dtype], device), direction)()
    run = runner(cascade, make_inputs(case, kind, DTYPES[dtype], device), direction)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = run()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the high-water mark starts again at what is resident now
    before = _status("VmRSS")
    kept = run()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main() -> None:
    asked = json.loads(sys.argv[1])
    asked["case"] = Case(**asked["case"])
    # no core file and no swapping neighbour when a dense peer asks for too much
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(growth(**asked))


if __name__ == "__main__":
    main()
