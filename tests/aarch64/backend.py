"""`--backends aarch64`: the tests of every backend, with the CPU kernels compiled for 64-bit ARM and run in an emulator. It
is named, never chosen.

The kernels and their drivers are those of csrc/cpu, the few functions of torch that they call are in torch/ beside this file.
Every call is a process of the emulator, which finds its tensors in a file and leaves them there.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from difnet_kernels import cascade
from difnet_kernels.backends import Backend
from difnet_kernels.problem import Problem, Projection

NAME = "aarch64"
COMPILER, EMULATORS = "aarch64-linux-gnu-g++", ("qemu-aarch64-static", "qemu-aarch64")
# the instruction set: bf16 fields are multiplied by BFMMLA, others by the vectors of the baseline. The model of a matrix unit
# runs on every processor
ISA = os.environ.get("DIFNET_KERNELS_AARCH64_ISA", "bfmmla")
PROCESSOR = "max"  # one with every extension that the emulator knows; cortex-a57 is one without BFMMLA
ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "aarch64"
DRIVERS = ("isa", "walk/forward", "walk/backward", "projection/forward", "projection/backward")
KERNELS = {
    "WALK": "walk/kernels",
    "WALK_UNIT": "walk/kernels_unit",
    "WALK_BF16": "walk/kernels_bf16",
    "PROJECTION": "projection/kernels",
    "PROJECTION_UNIT": "projection/kernels_unit",
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32)  # in the order of ScalarType


def _emulator() -> str | None:
    return next(filter(None, map(shutil.which, EMULATORS)), None)


def unusable() -> str | None:
    missing = [COMPILER] * (shutil.which(COMPILER) is None) + [EMULATORS[0]] * (_emulator() is None)
    return f"{' and '.join(missing)} not found" if missing else None


def refuses(problem: Problem | Projection) -> str | None:
    return None if problem.device.type == "cpu" else "it runs on the CPU"


def _rows() -> list[tuple[str, str, list[str], str, str, list[str]]]:
    """Those of isa.def that 64-bit ARM has: name, what it extends, flags, whether it runs and is preferred, kernels."""
    table = (ROOT / "csrc" / "cpu" / "isa.def").read_text()
    row = r'^DIFNET_ISA\((\w+), (\w+), (?:any|aarch64), "([^"]*)", ([^,]+), (\w+), ([A-Z0-9_ ]+)\)'
    return [
        (name, extends, flags.split(), runs, preferred, kernels.split())
        for name, extends, flags, runs, preferred, kernels in re.findall(row, table, re.M)
    ]


@cache
def program() -> Path:
    """call.cpp and the kernels, with few optimisations: compiling takes as long as the tests."""
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / "call"
    sources = [path for folder in ("csrc", "tests/aarch64") for path in (ROOT / folder).rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in sources if "__pycache__" not in path.parts)
    if target.exists() and target.stat().st_mtime > newest:
        return target
    macros = ("ISA", *KERNELS)
    lines = [f"#ifndef DIFNET_{macro}\n#define DIFNET_{macro}(...)\n#endif" for macro in macros]
    jobs = [(f"{ROOT}/csrc/cpu/{name}.cpp", name.replace("/", "_"), []) for name in DRIVERS]
    jobs.append((f"{Path(__file__).parent}/call.cpp", "call", []))
    for name, extends, its_flags, runs, preferred, kernels in _rows():
        lines.append(f"DIFNET_ISA({name}, {extends}, {runs}, {preferred})")
        for kernel in kernels:
            lines.append(f"DIFNET_{kernel}({name})")
            file = KERNELS[kernel]
            target_name, more = f"{name}_{file.replace('/', '_')}", [f"-DDIFNET_ISA={name}", *its_flags]
            jobs.append((f"{ROOT}/csrc/cpu/{file}.cpp", target_name, more))
    lines += [f"#undef DIFNET_{macro}" for macro in macros]
    (BUILD / "isa_built.def").write_text("\n".join(lines) + "\n")
    flags = ["-std=c++20", "-O1", "-DNDEBUG", "-Wall", "-fno-math-errno", "-ffp-contract=fast", "-I", str(BUILD)]
    flags += ["-I", str(ROOT / "csrc"), "-I", str(Path(__file__).parent)]

    def compile_one(job: tuple[str, str, list[str]]) -> str:
        source, name, more = job
        target = str(BUILD / f"{name}.o")
        subprocess.run([COMPILER, *flags, *more, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, reversed(jobs)))  # the kernels first, which take longest
    subprocess.run([COMPILER, "-static", "-pthread", *objects, "-o", str(target)], check=True)
    return target


def _span(x: Tensor) -> int:
    """Elements from the first to the last one of a tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def _memory(x: Tensor) -> Tensor:
    return x.detach().as_strided((_span(x),), (1,)).view(torch.uint8)


def call(
    name: str, t: int, tensors: Sequence[Tensor | None], isa: str | None = ISA, processor: str = PROCESSOR
) -> None:
    """A native operator on the emulator of a processor, whose instruction set is `isa`, or the library's choice."""
    emulator = _emulator()
    assert emulator is not None
    with tempfile.TemporaryDirectory() as folder:
        file, places = Path(folder) / "tensors", []
        content = bytearray(struct.pack("q", len(tensors)))
        for x in tensors:
            if x is None:
                content += struct.pack("q", -1)
                continue
            head = (DTYPES.index(x.dtype), x.dim(), *x.shape, *x.stride(), _span(x))
            content += struct.pack(f"{len(head)}q", *head)
            places.append((x, len(content)))
            content += _memory(x).numpy().tobytes()
        file.write_bytes(content)
        environment = {**os.environ, "DIFNET_KERNELS_ISA": isa or "", "QEMU_CPU": processor}
        subprocess.run([emulator, str(program()), name, str(t), str(file)], env=environment, check=True, timeout=300)
        content = bytearray(file.read_bytes())
    for x, start in places:
        memory = _memory(x)
        memory.copy_(torch.frombuffer(content, dtype=torch.uint8, offset=start, count=memory.numel()))


def walk_forward(state: Tensor, seed: Tensor, psi: Tensor, bias: Tensor | None, mu: Tensor, beta: Tensor, t: int,
                 next_state: Tensor, walked: Tensor, row_lse: Tensor, precision: str) -> None:  # fmt: skip
    call("walk_forward", t, (state, seed, psi, bias, mu, beta, next_state, walked, row_lse))


def walk_backward(*arguments: Tensor | int | str | None) -> None:
    t = arguments[8]
    assert isinstance(t, int)
    call("walk_backward", t, (*arguments[:8], *arguments[9:-1]))  # type: ignore[arg-type]


def projection_forward(features: Tensor, weight: Tensor, slope: Tensor | None, *, peak: Tensor, position: Tensor,
                       mean: Tensor | None, variance: Tensor | None) -> None:  # fmt: skip
    call("project_pool_forward", 0, (features, weight, slope, peak, position, mean, variance))


def projection_backward(grad_peak: Tensor, grad_mean: Tensor | None, grad_variance: Tensor | None, features: Tensor,
                        weight: Tensor, position: Tensor, mean: Tensor | None, *, z: Tensor | None = None,
                        grad_features: Tensor | None, grad_weight: Tensor | None) -> None:  # fmt: skip
    def node_major(pooled: Tensor) -> Tensor:
        return pooled.movedim(1, -1).contiguous()

    upstream = (node_major(grad_peak.to(weight.dtype)), grad_mean, grad_variance)
    saved = (node_major(position), None if z is None else node_major(z), mean)
    call("project_pool_backward", 0, (*upstream, features, weight, *saved, grad_features, grad_weight))


BACKEND = Backend(
    name=NAME,
    unusable=unusable,
    refuses=refuses,
    refuses_projection=refuses,
    cascade_forward=partial(cascade.forward, walk_forward),
    cascade_backward=partial(cascade.backward, walk_backward),
    projection_forward=projection_forward,
    projection_backward=projection_backward,
)
