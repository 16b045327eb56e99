"""A process that runs ours with one revision of the package: the end that asks, and the end that answers.

The end that answers uses only the public functions, so that it runs every revision that has them.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.inputs import make_inputs

ROOT = Path(__file__).parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = 400.0
Problem = tuple[Case, str, str]  # a case, a dtype, a direction
PSI = "psi "  # in front of a direction: Ψ instead of walks, of as many feature channels as the case has classes


class Worker:
    """A process with the package of a folder, under a tool if one is named: a line of JSON in, one out."""

    def __init__(self, name: str, package: Path, tool: Sequence[str] = (), **environment: str) -> None:
        self.name, self.package = name, package
        # the package first, then the benchmarks of the working tree, whatever the current folder holds
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]), **environment}
        self._away = tempfile.TemporaryDirectory()
        command = [*tool, sys.executable, "-c", "from benchmarks.worker import serve; serve()"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=self._away.name, **pipes)
        self.about = self._answer()
        if not Path(self.about["package"]).resolve().is_relative_to(package.resolve()):
            self.__exit__()
            raise RuntimeError(f"{name} should load the package of {package}, but loads {self.about['package']}.")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._away.cleanup()

    def seconds(self, problem: Problem, *, repeats: int = 1, times: int = 1, switches: str = "") -> float:
        """Of a call, the least of `times` samples of `repeats` calls. switches: a library that is told of the calls."""
        case, dtype, direction = problem
        asked = {"case": asdict(case), "dtype": dtype, "direction": direction}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([asked, repeats, times, switches]) + "\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        patience = threading.Timer(PATIENCE, self.process.kill)
        patience.start()
        line = self.process.stdout.readline()
        patience.cancel()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended, or took more than {PATIENCE:.0f} s for one answer.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def call_of(case: Case, dtype: str, direction: str) -> Callable[[], object]:
    from difnet_kernels import cascaded_random_walk

    if direction.startswith(PSI):
        return _projection(case, dtype, direction.removeprefix(PSI))
    inputs = make_inputs(case, "smooth", DTYPES[dtype]).leaves()

    def call() -> object:
        with torch.set_grad_enabled(direction != "forward"):
            state = cascaded_random_walk(inputs.seed, inputs.psi, inputs.mu, inputs.beta)
        return state if direction == "forward" else torch.autograd.grad(state, inputs.differentiable, inputs.grad)

    return call


def _projection(case: Case, dtype: str, direction: str) -> Callable[[], object]:
    from difnet_kernels import psi_projection

    draw = torch.Generator().manual_seed(7)
    features = torch.randn(case.batch, case.classes, *case.grid, generator=draw).to(DTYPES[dtype])
    weight = torch.randn(case.embed, case.classes, generator=draw) * case.classes**-0.5
    bias, norm = torch.zeros(case.embed), torch.nn.BatchNorm1d(case.embed).eval().requires_grad_(False)
    leaves = [features.requires_grad_(), weight.requires_grad_()]
    weights = torch.randn(case.batch, case.embed, *case.grid, generator=draw)

    def call() -> object:
        with torch.set_grad_enabled(direction != "forward"):
            psi = psi_projection(features, weight, bias, norm, case.grid)
        return psi if direction == "forward" else torch.autograd.grad(psi, leaves, weights.to(psi.dtype))

    return call


def serve() -> None:
    """A line of JSON about the package, then one for every line that is read."""
    import difnet_kernels
    from difnet_kernels.backends import BACKENDS

    reasons = {name: backend.unusable() for name, backend in BACKENDS.items()}
    first = next(name for name, reason in reasons.items() if reason is None)
    print(json.dumps({"package": difnet_kernels.__file__, "backend": first, "missing": reasons}), flush=True)
    prepared: tuple[object, Callable[[], object]] = (None, lambda: None)
    for line in sys.stdin:
        asked, repeats, times, switches = json.loads(line)
        if prepared[0] != asked:
            prepared = asked, call_of(Case(**asked["case"]), asked["dtype"], asked["direction"])
            prepared[1]()
        counted = ctypes.CDLL(switches) if switches else None
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            if counted:
                counted.start_counting()
            for _ in range(repeats):
                prepared[1]()
            if counted:
                counted.stop_counting()
            taken.append((time.perf_counter() - start) / repeats)
        print(json.dumps({"seconds": min(taken)}), flush=True)
