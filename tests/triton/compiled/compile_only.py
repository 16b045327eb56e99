"""Compiles what a run on a GPU would compile, on a machine without one, and reads the binary.

The real launch code runs on CPU tensors under a driver that only knows an architecture: every kernel is specialised
by the very arguments of the run (alignment, constants) and compiled to a cubin, but not started. So the binary that
is looked at is the binary that would run.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);")
_TARGET = re.compile(r" 0x([0-9a-f]+)(?=\s*(?:[&?]|$))")  # of a branch; what the scheduler asks for may follow
BYTES = 16  # of an instruction


def _turn(lines: Sequence[str]) -> tuple[str, ...]:
    """Of all instructions with their operands those of the shortest loop with at least half as many matrix instructions as
    the richest, or of the longest loop where there are none. A loop is what a branch backwards spans."""
    loops: list[tuple[int, int]] = []
    for place, line in enumerate(lines):
        target = _TARGET.search(line) if line.startswith("BRA") else None
        if target and (first := int(target[1], 16) // BYTES) <= place:
            loops.append((first, place + 1))
    matrix = [sum(line.startswith(MATRIX) for line in lines[begin:end]) for begin, end in loops]
    rich = [loop for loop, number in zip(loops, matrix, strict=True) if number > 0 and 2 * number >= max(matrix)]
    longest = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    best = min(rich, key=lambda loop: loop[1] - loop[0], default=longest)
    return tuple(lines[best[0] : best[1]])


def _machine_code(cubin: bytes) -> bytes:
    """The one section of code of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<2I4Q", cubin, table + size * n) for n in range(number)]
    start = sections[names][4]
    (code,) = (
        cubin[at : at + length] for name, *_, at, length in sections if cubin.startswith(b".text.", start + name)
    )
    return code


def _told_by(tool: str, options: Sequence[str], content: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        done = subprocess.run(
            [TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True, timeout=120
        )
    return done.stdout + done.stderr


def _disassembled(arch: int, cubins: Sequence[bytes]) -> Iterator[tuple[str, ...]]:
    """The instructions of each with their operands; addresses are those within it. One start of the disassembler, which takes a
    third of a second, for all."""
    codes = [_machine_code(cubin) for cubin in cubins]
    told = _told_by("nvdisasm", ["-b", f"SM{arch}{'a' if arch >= 90 else ''}"], b"".join(codes))
    found = [match for line in told.splitlines() if (match := _INSTRUCTION.match(line))]
    assert BYTES * len(found) == sum(map(len, codes))
    first = 0
    for code in codes:
        own, base = found[first : first + len(code) // BYTES], BYTES * first
        first += len(own)
        yield tuple(_within(match[1] + match[2], base) for match in own)


def _within(line: str, base: int) -> str:
    """A branch of a kernel that begins at this address, as if it began at zero."""
    return _TARGET.sub(lambda target: f" {int(target[1], 16) - base:#x}", line) if line.startswith("BRA") else line


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack)"""
    usage = _told_by("cuobjdump", ["-res-usage"], cubin)
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    return registers, stack


Facts = tuple[int, int, tuple[str, ...], tuple[str, ...]]
_known: dict[bytes, Facts] = {}  # builds of one architecture share small kernels


def _read(arch: int, binaries: Sequence[Binary]) -> None:
    """Fills in what the machine code of each contains."""
    new = list({binary.cubin: None for binary in binaries if binary.cubin not in _known})
    for cubin, lines in zip(new, _disassembled(arch, new) if new else (), strict=True):
        _known[cubin] = *_usage(cubin), tuple(line.split()[0] for line in lines), _turn(lines)
    for binary in binaries:
        binary.registers, binary.stack, binary.code, binary.turn = _known[binary.cubin]
        binary.instructions = Counter(binary.code)
        binary.loop = Counter(line.split()[0] for line in binary.turn)


@contextmanager
def compiled_for(arch: int, processors: int, only: Sequence[str] = ()) -> Iterator[list[Binary]]:
    """Within it, kernels launched by the Triton backend are compiled for `arch` and collected instead of run; if any are named
    in `only`, no others are compiled. The keys under which they would be kept have to tell them apart, and every buffer has to
    be aligned."""
    from difnet_kernels.backends.triton import direct, launch
    from difnet_kernels.backends.triton.projection import host as projection
    from difnet_kernels.backends.triton.walk import host, host_backward

    binaries: dict[str, Binary] = {}

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if only and self.fn.__name__ not in only:
            return None
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
        assert key and (made is None or keys.setdefault((self, key), made.hash) == made.hash), key

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
    found.extend(binaries.values())
    _read(arch, found)
