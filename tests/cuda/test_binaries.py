"""What nvcc made of the kernels, read from the library that was built: nothing on the stack, the matrix units used as often as
computed, copies of 16 bytes, room for two blocks on a multiprocessor. And what the library says where there is no card."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from difnet_kernels.backends import native
from tests.cuda import twin

ARCHS = (80, 90, 100, 120)
MEGABYTES = 10
REGISTERS, THREADS, BLOCKS = 65536, 128, 2
# of a multiprocessor of sm_86, sm_89 and sm_120, and of sm_80; a block takes 1 KiB more than it asks for
LEAST_SHARED, LARGE_SHARED = 100 * 1024, 164 * 1024
Kind = tuple[str, int, int, int]  # direction, products, embed, width
SIZES = [(products, embed, width) for products in (1, 3) for embed in (64, 128) for width in (24, 64)]
KINDS: list[Kind] = [(direction, *size) for direction in ("forward", "backward") for size in SIZES]
# forward with Ψ in the launch
KINDS += [("projected", products, 64, width) for products in (1, 3) for width in (24, 64)]
WIDEST = (3, 128, 64)

COMPILED = native.unusable() is None and hasattr(torch.ops.difnet_kernels, "cuda_cascade_forward")
pytestmark = pytest.mark.skipif(
    not COMPILED, reason="the library was built without nvcc: its CUDA code is NOT checked here"
)


def _tool(name: str) -> str:
    """cuobjdump or nvdisasm: of the toolkit, or of Triton's package."""
    places = ["/usr/local/cuda/bin"]
    places += [str(Path(entry) / "triton" / "backends" / "nvidia" / "bin") for entry in sys.path]
    found = shutil.which(name) or next((tool for place in places if (tool := shutil.which(name, path=place))), None)
    assert found is not None, f"{name} is needed: it comes with the CUDA toolkit and with Triton"
    return found


@cache
def _dump(*options: str) -> str:
    command = [_tool("cuobjdump"), *options, str(native.LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Binary:
    """One kernel on one architecture: its instructions by name, and what it keeps per thread."""

    instructions: Counter[str]
    registers: int
    stack: int
    local: int

    def count(self, pattern: str) -> int:
        return sum(count for name, count in self.instructions.items() if re.match(pattern, name))


def _kind(mangled: str) -> Kind | None:
    found = re.search(
        r"(?:cascade_(?=forward|backward)|(?=projected_cascade))([a-z]+)(?:_cascade)?INS0_4KindILi(\d+)ELi(\d+)ELi(\d+)E",
        mangled,
    )
    return None if found is None else (found[1], int(found[2]), int(found[3]), int(found[4]))


@cache
def binaries() -> dict[tuple[int, Kind], Binary]:
    return read_binaries(_kind)


def read_binaries(kind_of: Callable[[str], Kind | None]) -> dict[tuple[int, Kind], Binary]:
    """Those of the kernels that `kind_of` knows by their mangled names."""
    usage, found = {}, {}
    arch: int = 0
    kind: Kind | None = None
    for line in _dump("-res-usage").splitlines():
        if named := re.search(r"arch = sm_(\d+)", line):
            arch = int(named[1])
        elif "Function" in line:
            kind = kind_of(line)
        elif kind is not None and (kept := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line)):
            usage[arch, kind] = tuple(int(number) for number in kept.groups())
    instructions: Counter[str] = Counter()
    for line in _dump("-sass").splitlines():
        if named := re.search(r"arch = sm_(\d+)", line):
            arch = int(named[1])
        elif "Function :" in line:
            kind, instructions = kind_of(line), Counter()
            if kind is not None:
                found[arch, kind] = Binary(instructions, *usage[arch, kind])
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.]*)", line):
            instructions[code[1]] += 1
    return found


EVERY_BINARY = [
    pytest.param(arch, kind, id=f"sm_{arch}-{'-'.join(map(str, kind))}") for arch in ARCHS for kind in KINDS
]


def test_every_kernel_is_there_for_every_architecture() -> None:
    """Machine code for each, and PTX for what is newer than all."""
    assert set(binaries()) == {(arch, kind) for arch in ARCHS for kind in KINDS}
    assert re.findall(r"sm_(\d+)\.ptx", _dump("-lptx")) == ["80"] * 4  # of either direction, of Ψ, and with Ψ


def test_the_library_stays_small() -> None:
    assert native.LIBRARY.stat().st_size <= MEGABYTES * 2**20


@pytest.mark.parametrize(("arch", "kind"), EVERY_BINARY)
def test_nothing_lies_on_the_stack(arch: int, kind: Kind) -> None:
    binary = binaries()[arch, kind]
    assert (binary.stack, binary.local) == (0, 0)
    assert binary.count(r"LDL|STL") == 0


def _forward_instructions(products: int, embed: int, width: int) -> list[int]:
    """mma, ldmatrix of four, transposed, and of two, of one column tile."""
    tile, halves = twin.tile_of(products, embed, width), 2 if products == 3 else 1
    of_psi, of_y = embed // 16 * (tile // 8), tile // 16 * (width // 8)
    transposed = [halves * (tile // 16) * count for count in (width // 16, width // 8 % 2)]
    return [products * (of_psi + of_y), halves * of_psi // 2, *transposed]


def _backward_instructions(products: int, embed: int, width: int) -> list[int]:
    """The same of 16 columns: two tiles of G, h·y and y·h each, and one of every 8 channels of T ψ and classes of P h. What
    does not stay in registers is loaded again."""
    halves, steps, rest = 2 if products == 3 else 1, width // 16, width % 16 // 8
    of_rows = embed // 16 * 2 + 2 * (steps + rest) * 2
    straight = halves * embed // 16 + 2 * (halves * steps + rest)
    if (products, embed, width) == WIDEST:
        straight += embed // 16 + 2 * halves * steps
    elif embed == 128 or (products == 3 and width == 64):
        straight += halves * embed // 16
    return [products * (of_rows + embed // 8 + width // 8), straight, halves * (embed // 16 + steps), halves * rest]


@pytest.mark.parametrize(("arch", "kind"), EVERY_BINARY)
def test_the_matrix_units_do_what_was_computed(arch: int, kind: Kind) -> None:
    """And the ldmatrix that feed them, once in the code."""
    direction, *size = kind
    binary = binaries()[arch, kind]
    patterns = [r"HMMA\.16816\.F32$", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4", r"LDSM\.16\.MT88\.2"]
    computed = _backward_instructions(*size) if direction == "backward" else _forward_instructions(*size)
    if direction == "projected":  # z = W f of 16 pixels and 16 channels: three products whatever the walks take
        computed[0] += 3 * size[1] // 8
        computed[1] += 2 + 2 * size[1] // 16
    assert [binary.count(pattern) for pattern in patterns] == computed
    assert binary.count(r"HMMA") == binary.count(patterns[0])


@pytest.mark.parametrize(("arch", "kind"), EVERY_BINARY)
def test_tiles_are_copied_asynchronously_in_chunks_of_16_bytes(arch: int, kind: Kind) -> None:
    """psi and y, and backward h twice, for the first tile and for the next one, and the biases."""
    direction, products, embed, width = kind
    binary = binaries()[arch, kind]
    assert binary.count(r"LDGSTS.*\.128") == binary.count(r"LDGSTS")
    halves = 2 if products == 3 else 1
    if direction != "backward":
        tile = twin.tile_of(products, embed, width)
        chunks = [-(-tile * numbers // 8 // THREADS) for numbers in (embed, width)]
        assert binary.count(r"LDGSTS") >= 2 * (halves * sum(chunks) + 1)
    else:  # ptxas may leave a loop over the chunks of a tile
        assert binary.count(r"LDGSTS") >= 2 * (halves * 4 + 4)


def assert_blocks_are_ordered(binary: Binary) -> None:
    """Every release stands behind a fence, every acquire empties the first-level cache, and no load goes past it by the way
    that is not coherent: what another block writes is seen."""
    releases, acquires = binary.count(r"REDG?\.E\.ADD\.STRONG\.GPU"), binary.count(r"LDG\.E\.STRONG\.GPU")
    both = binary.count(r"ATOMG\.E\.ADD\.STRONG\.GPU")
    assert min(releases, acquires, both) > 0
    assert binary.count(r"MEMBAR\.(ALL|SC)\.GPU") == releases + both
    assert binary.count(r"CCTL\.IVALL") == acquires + both
    assert binary.count(r"LDG.*\.CONSTANT") == 0
    assert binary.count(r"(RED|ATOM)(?!\w*\.E\.ADD\.STRONG\.GPU)") == 0


@pytest.mark.parametrize(("arch", "kind"), EVERY_BINARY)
def test_what_orders_the_blocks_is_in_the_machine_code(arch: int, kind: Kind) -> None:
    assert_blocks_are_ordered(binaries()[arch, kind])


@pytest.mark.parametrize(("arch", "kind"), EVERY_BINARY)
def test_two_blocks_fit_on_a_multiprocessor(arch: int, kind: Kind) -> None:
    """The wide kernels of the backward: where a multiprocessor has 164 KiB; the widest, one block anywhere."""
    direction, products, embed, width = kind
    size = (products, embed, width)
    registers = -(-binaries()[arch, kind].registers // 8) * 8
    assert BLOCKS * THREADS * registers <= REGISTERS
    shared = twin.shared_bytes(products, embed, width, direction) + 1024
    assert shared <= LEAST_SHARED
    if direction != "backward" or size in ((1, 64, 24), (3, 64, 24), (1, 64, 64), (1, 128, 24), (1, 128, 64)):
        assert BLOCKS * shared <= LEAST_SHARED
    elif size != WIDEST:
        assert BLOCKS * shared <= LARGE_SHARED


def test_it_loads_where_no_cuda_is() -> None:
    """Under a torch without CUDA: no CUDA library is needed, what only torch with CUDA has is weak, and the runtime inside
    is nobody else's."""
    symbols = subprocess.run(["nm", "-D", str(native.LIBRARY)], capture_output=True, text=True, check=True).stdout
    of_cuda = [line.split() for line in symbols.splitlines() if "cuda" in line.lower().split()[-1]]
    # this one names a device type, and is in every torch
    assert [words[-1] for words in of_cuda if words[-2] == "U"] == ["aoti_torch_device_type_cuda"]
    assert ["w", "aoti_torch_get_current_cuda_stream"] in of_cuda
    assert [words[-1] for words in of_cuda if words[-1].startswith("cuda")] == []
    needed = subprocess.run(["readelf", "-d", str(native.LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"NEEDED.*\[(lib(?:cu|nv)[^]]*)\]", needed) == []


# ---- without a card ---------------------------------------------------------------------------------------------------

NO_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


@NO_CARD
def test_without_a_device_the_driver_says_why() -> None:
    from difnet_kernels import BackendUnavailable, cascaded_random_walk

    told = str(torch.ops.difnet_kernels.why_no_cuda_device())
    assert "CUDA error " in told or "no device" in told
    with pytest.raises(BackendUnavailable) as raised:
        cascaded_random_walk(torch.randn(1, 2, 5), [torch.randn(1, 3, 5)], [0.5], [0.5], backend="cuda")
    assert told in str(raised.value) or "torch is built without CUDA" in str(raised.value)


@NO_CARD
def test_a_launch_that_fails_names_its_case_and_the_error() -> None:
    """From the C entry, which checks every call."""
    entry = ctypes.CDLL(str(native.LIBRARY)).difnet_cuda_cascade_forward
    seed, psi, gates = torch.zeros(2, 5, 130), torch.zeros(2, 16, 130), torch.zeros(1)
    counters = torch.zeros(twin.counters_size(2, 130, 1), dtype=torch.int32)
    request, kept = twin.request_of(None, seed, [psi], gates, gates, "high", [seed], None, None, counters, twin.CARD)
    told = ctypes.create_string_buffer(1000)
    length = entry(ctypes.byref(request), 0, None, None, told, len(told))
    words = told.value.decode()
    assert length == len(words) > 0 and kept
    assert "CUDA error " in words and words.startswith("cuda")
    if "cudaSetDevice" not in words:
        assert "1 walks, 2 images of 130 nodes, 5 classes" in words
