"""A minute that catches a real regression: `pytest benchmarks/ --benchmark-only -k smoke`.

The gates are far below what is measured on a quiet machine (docs/performance.md), because a shared one is noisy and the
ratio is taken within one run; a kernel that lost its point falls through them all the same.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import show
from benchmarks.cascade import CascadeTask
from benchmarks.cases import CASES, Case
from benchmarks.memory import MemoryTask
from benchmarks.peers import backend_in_use
from benchmarks.questions import QUICK
from benchmarks.tasks import MEASURED, Task

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these gates are for a CPU")

EVAL = CASES["eval505"].but(walks=1)
CROP = CASES["train321_one"].but(walks=1)


def _task(case: Case, direction: str, dtype: str = "fp32", contenders: tuple[str, ...] = QUICK) -> Task:
    return CascadeTask("smoke", case, direction, "smooth", dtype, contenders, 1.5)


# how many times faster than the fastest peer ours must be, at least
GATES = (
    (_task(EVAL, "forward"), 1.5),
    (_task(EVAL, "forward+backward"), 1.5),
    # without the dense form, which is as fast as a processor's 16-bit matrix units, if it has any
    (_task(EVAL, "forward", "bf16", ("ours", "sdpa")), 1.5),
    (_task(CROP, "forward"), 1.2),
    (_task(CROP, "forward+backward"), 1.2),
)
# seconds of a call on 16 nodes; the target is 60 µs
OVERHEAD = CascadeTask(
    "smoke", Case("tiny", 1, 16, 64, 21, 1), "forward", "smooth", "fp32", ("ours", "dense"), 0.6, repeats=50
)
MOST_OVERHEAD = 200e-6
# bytes: what is promised (docs/performance.md); the dense formula needs gigabytes here
MEMORY = MemoryTask("smoke", CASES["eval505_h5"], "forward+backward", "smooth", "fp32", ("ours",))
MOST_MEMORY = 64 * 10**6


def _needs_kernels() -> None:
    if backend_in_use() == "reference":
        pytest.fail("no compiled backend, nothing to guard: see `python -m difnet_kernels info`", pytrace=False)


@pytest.mark.parametrize(("task", "gate"), GATES, ids=[f"{task}" for task, _ in GATES])
def test_smoke_ratio_to_the_best_peer(task: Task, gate: float, play, measured) -> None:
    _needs_kernels()
    play(task, "ours")
    rows = list(measured(task).values())
    assert [row.contender for row in rows if row.status == MEASURED] == list(task.contenders), show.task("", rows)
    faster = show.ratio(rows)
    assert faster is not None
    assert faster >= gate, f"{faster:.2f}x the best peer; the gate is {gate}x{show.task('', rows)}"


def test_smoke_overhead_of_a_call(play) -> None:
    _needs_kernels()
    # the least of many: at microseconds, whatever else runs on the machine only adds
    least = min(play(OVERHEAD, "ours").samples)
    assert least <= MOST_OVERHEAD, f"{show.seconds(least)} per call; at most {show.seconds(MOST_OVERHEAD)}"


def test_smoke_memory_stays_linear(play) -> None:
    _needs_kernels()
    row = play(MEMORY, "ours")
    assert row.memory <= MOST_MEMORY, f"the process grew by {show.size(row.memory)}; at most {show.size(MOST_MEMORY)}"
