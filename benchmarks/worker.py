"""The process that `benchmarks.compare` and `benchmarks.counts` start: runs ours, with the package that it finds.

Uses only the public functions, so that it runs every revision that has them.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.cases import Case
from benchmarks.inputs import make_inputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def call_of(case: Case, dtype: str, direction: str) -> Callable[[], object]:
    from difnet_kernels import cascaded_random_walk

    inputs = make_inputs(case, "smooth", DTYPES[dtype]).leaves()

    def call() -> object:
        with torch.set_grad_enabled(direction != "forward"):
            state = cascaded_random_walk(inputs.seed, inputs.psi, inputs.mu, inputs.beta)
        return state if direction == "forward" else torch.autograd.grad(state, inputs.differentiable, inputs.grad)

    return call


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def serve() -> None:
    """A line of JSON about the package, then one for every line that is read."""
    import difnet_kernels
    from difnet_kernels.backends import BACKENDS

    reasons = {name: backend.unusable() for name, backend in BACKENDS.items()}
    first = next(name for name, reason in reasons.items() if reason is None)
    print(json.dumps({"package": difnet_kernels.__file__, "backend": first, "missing": reasons}), flush=True)
    call: Callable[[], object] = lambda: None  # noqa: E731  until the first problem is prepared
    for line in sys.stdin:
        question = json.loads(line)
        if question["task"] == "prepare":
            call = call_of(Case(**question["case"]), question["dtype"], question["direction"])
            call()
        times = [seconds_of(call, question["repeats"]) for _ in range(question["times"])]
        print(json.dumps({"seconds": min(times)}), flush=True)


def run_counted() -> None:
    """`LIBRARY PROBLEMS-AS-JSON`: one call of each problem on one thread, between the switches of callgrind.c."""
    switches = ctypes.CDLL(sys.argv[1])
    torch.set_num_threads(1)
    for case, dtype, direction in json.loads(sys.argv[2]):
        call = call_of(Case(**case), dtype, direction)
        call()
        switches.start_counting()
        call()
        switches.stop_counting()
