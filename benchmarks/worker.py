"""The other end of `benchmarks.compare`: runs ours on request, whichever revision of the package it finds.

Uses only the public function, so that it runs every revision that has it.
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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # benchmarks.tasks would import what an old revision lacks


def call_of(case: Case, dtype: str, direction: str) -> Callable[[], object]:
    from difnet_kernels import cascaded_random_walk

    inputs = make_inputs(case, "smooth", DTYPES[dtype])
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return cascaded_random_walk(inputs.seed, inputs.psi, inputs.mu, inputs.beta)

        return forward
    leaves = inputs.leaves()

    def both() -> object:
        state = cascaded_random_walk(leaves.seed, leaves.psi, leaves.mu, leaves.beta)
        return torch.autograd.grad(state, leaves.differentiable, leaves.grad)

    return both


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def serve() -> None:
    import difnet_kernels
    from difnet_kernels import backends

    reasons = {name: backend.unusable() for name, backend in backends.BACKENDS.items()}
    first = next(name for name, reason in reasons.items() if reason is None)
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    print(json.dumps({"package": difnet_kernels.__file__, "backend": first, "missing": missing}), flush=True)
    call: Callable[[], object] = lambda: None  # noqa: E731  until the first problem is prepared
    for line in sys.stdin:
        question = json.loads(line)
        if question["task"] == "prepare":
            call = call_of(Case(**question["case"]), question["dtype"], question["direction"])
            call()
            answer = min(seconds_of(call, 1) for _ in range(3))
        else:
            answer = seconds_of(call, question["repeats"])
        print(json.dumps({"seconds": answer}), flush=True)


def run_counted() -> None:
    """`LIBRARY PROBLEMS-AS-JSON`: one call of each problem on one thread, between the switches that the library has
    (benchmarks/callgrind.c)."""
    switches = ctypes.CDLL(sys.argv[1])
    torch.set_num_threads(1)
    for case, dtype, direction in json.loads(sys.argv[2]):
        call = call_of(Case(**case), dtype, direction)
        call()
        switches.start_counting()
        call()
        switches.stop_counting()
