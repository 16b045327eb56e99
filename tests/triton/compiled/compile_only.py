"""Compiles what a run on a GPU would compile, on a machine without one, and reads the binary.

The real launch code runs on CPU tensors under a driver that only knows an architecture: every kernel is specialised
by the very arguments of the run (alignment, constants) and compiled to a cubin, but not started. So the binary that
is looked at is the binary that would run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

# (3, 9) for Triton 3.9, with which the launch rows were chosen
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class CompileOnlyDriver:
    """The part of a driver that compilation asks for."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # compiled kernels are cached per device: one device for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass


@dataclass
class Binary:
    """One compiled kernel and what its machine code contains."""

    kernel: str
    arch: int
    constants: dict[str, Any]
    cubin: bytes
    shared: int
    warps: int
    stages: int
    programs: int
    layouts: str  # of the tiles in global memory: Triton's own intermediate code
    registers: int = 0
    stack: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    loop: Counter[str] = field(
        default_factory=Counter
    )  # one turn of the loop with the matrix instructions, one column tile
    turn: tuple[str, ...] = ()  # the same with operands, in their order
    code: tuple[str, ...] = ()  # all instructions, in their order

    def __str__(self) -> str:
        shape = "".join(f"{key}{value}-" for key, value in self.constants.items() if key in ("DP", "KP", "I", "J"))
        return f"{self.kernel}-sm{self.arch}-{shape}w{self.warps}"

    @property
    def programs_per_sm(self) -> int:
        """Programs that registers and shared memory leave room for."""
        room = {80: 164, 90: 228, 100: 228, 120: 100}[self.arch] * 1024
        by_shared = room // (self.shared + 1024)
        by_registers = 65536 // (self.warps * 32 * max(8, -(-self.registers // 8) * 8))
        return min(by_shared, by_registers)

    def lanes(self, shape: tuple[int, int]) -> set[tuple[int, int]]:
        """How the threads of a warp lie in the tiles of this shape that are read or written element by element."""
        threads = r"threadsPerWarp = \[(\d+), (\d+)\]"
        found = re.findall(rf"^(#\w+) = #ttg.blocked<{{sizePerThread = \[1, 1\], {threads}", self.layouts, re.MULTILINE)
        lines = [line for line in self.layouts.splitlines() if re.search(r"tt\.load|tt\.store|async_copy_global", line)]
        tile = rf"tensor<{shape[0]}x{shape[1]}x!tt\.ptr<\w+>, "
        return {(int(a), int(b)) for name, a, b in found if any(re.search(rf"{tile}{name}>", line) for line in lines)}

    def lead(self, prefix: str) -> int:
        """The fewest instructions in a turn between a load of this kind and the first that reads what it loads; what only the
        next turn reads leads by the rest of this one."""
        leads = []
        for place, line in enumerate(self.turn):
            if line.startswith(prefix) and (loaded := re.search(r"R\d+", line)):
                later = (n for n, other in enumerate(self.turn[place + 1 :]) if re.search(rf"\b{loaded[0]}\b", other))
                leads.append(next(later, len(self.turn) - place))
        return min(leads, default=0)

    def count(self, *prefixes: str) -> int:
        return sum(number for name, number in self.instructions.items() if name.startswith(prefixes))

    def loop_count(self, *prefixes: str) -> int:
        return sum(number for name, number in self.loop.items() if name.startswith(prefixes))


MATRIX = ("HGMMA", "HMMA", "UTCHMMA")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*)")


def _parse(sass: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In their order all instructions, and with operands those of the shortest loop with at least half as many matrix
    instructions as the richest, or of the longest loop where there are none."""
    names: list[str] = []
    lines: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        elif found := _INSTRUCTION.match(line):
            names.append(found[1])
            lines.append(found[1] + found[2])
            target = re.search(r"\((\.L_x_\d+)\)", found[2])
            if found[1].startswith("BRA") and target and target[1] in labels:
                loops.append((labels[target[1]], len(names)))
    matrix = [sum(name.startswith(MATRIX) for name in names[begin:end]) for begin, end in loops]
    rich = [loop for loop, number in zip(loops, matrix, strict=True) if number > 0 and 2 * number >= max(matrix)]
    longest = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    best = min(rich, key=lambda loop: loop[1] - loop[0], default=longest)
    return tuple(names), tuple(lines[best[0] : best[1]])


def _told_by(tool: str, option: str, file: str) -> str:
    done = subprocess.run([TOOLS / tool, option, file], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout + done.stderr


@cache
def _facts(cubin: bytes) -> tuple[int, int, tuple[str, ...], tuple[str, ...]]:
    """(registers, bytes of stack, all instructions, those of the loop); builds of one architecture share small kernels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _told_by("cuobjdump", "-res-usage", file.name)
        registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
        return registers, stack, *_parse(_told_by("nvdisasm", "-c", file.name))


def _read(binary: Binary) -> Binary:
    binary.registers, binary.stack, binary.code, binary.turn = _facts(binary.cubin)
    binary.instructions = Counter(binary.code)
    binary.loop = Counter(line.split()[0] for line in binary.turn)
    return binary


@contextmanager
def compiled_for(arch: int, processors: int) -> Iterator[list[Binary]]:
    """Within it, kernels launched by the Triton backend are compiled for `arch` and collected instead of run. The keys under
    which they would be kept have to tell them apart, and every buffer has to be aligned."""
    from difnet_kernels.backends.triton import direct, launch
    from difnet_kernels.backends.triton.projection import host as projection
    from difnet_kernels.backends.triton.walk import host, host_backward

    binaries: dict[str, Binary] = {}

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **kwargs)
        key = made.hash
        assert made.metadata.launch_pdl == (arch >= 90)
        if key not in binaries:
            names = launch.constants_of(self.fn)
            binaries[key] = Binary(
                self.fn.__name__,
                arch,
                {name: value for name, value in kwargs.items() if name in names},
                made.asm["cubin"],
                made.metadata.shared,
                made.metadata.num_warps,
                made.metadata.num_stages,
                grid[0],
                made.asm["ttgir"],
            )
        return made

    keys: dict[tuple[Any, ...], str] = {}

    def told_apart(self: Any, key: Any, made: Any) -> None:
        """What is kept under one key is one binary."""
        assert key and keys.setdefault((self, key), made.hash) == made.hash, key

    def aligned(self: Any, device: int, arguments: Any, *more: Any) -> Any:
        addresses = [0 if isinstance(x, tuple) else x.data_ptr() for x in self.tensors(arguments)]
        assert self.all_aligned(addresses), arguments
        return started(self, device, arguments, *more)

    run, started = triton.JITFunction.run, direct.Direct.started
    card = launch.Card(arch, processors)
    previous = driver._active
    driver.set_active(CompileOnlyDriver(arch))
    found: list[Binary] = []
    try:
        with (
            mock.patch.object(triton.JITFunction, "run", compile_instead),
            mock.patch.object(direct.Direct, "keep", told_apart),
            mock.patch.object(direct.Direct, "started", aligned),
            mock.patch.object(host, "card_of", lambda device: card),
            mock.patch.object(host_backward, "card_of", lambda device: card),
            mock.patch.object(projection, "card_of", lambda device: card),
        ):
            yield found
    finally:
        driver._active = previous
    found.extend(_read(binary) for binary in binaries.values())
