"""What nvcc made of Ψ's kernels, as test_binaries.py has it of a cascade's."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.cuda import projection_twin
from tests.cuda.test_binaries import (
    ARCHS,
    BLOCKS,
    COMPILED,
    LARGE_SHARED,
    LEAST_SHARED,
    REGISTERS,
    THREADS,
    Binary,
    Kind,
    assert_blocks_are_ordered,
    read_binaries,
)

pytestmark = pytest.mark.skipif(
    not COMPILED, reason="the library was built without nvcc: its CUDA code is NOT checked here"
)
KINDS: list[Kind] = [
    (direction, products, embed, 0)
    for direction, of_fp32 in (("forward", 5), ("backward", 3))
    for products in (2, of_fp32)
    for embed in (64, 128)
]
EVERY = [pytest.param(arch, kind, id=f"sm_{arch}-{'-'.join(map(str, kind[:3]))}") for arch in ARCHS for kind in KINDS]


def _kind(mangled: str) -> Kind | None:
    found = re.search(r"projection_(forward|backward)INS0_4KindILi(\d+)ELi(\d+)ELi(\d+)E", mangled)
    return None if found is None else (found[1], int(found[2]), int(found[3]), int(found[4]))


@cache
def binaries() -> dict[tuple[int, Kind], Binary]:
    return read_binaries(_kind)


def test_every_kernel_is_there_for_every_architecture() -> None:
    assert set(binaries()) == {(arch, kind) for arch in ARCHS for kind in KINDS}


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_nothing_lies_on_the_stack(arch: int, kind: Kind) -> None:
    binary = binaries()[arch, kind]
    assert (binary.stack, binary.local) == (0, 0)
    assert binary.count(r"LDL|STL") == 0


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_the_matrix_units_do_what_was_computed(arch: int, kind: Kind) -> None:
    """mma, ldmatrix of four, and transposed, of 16 terms of each sum; every loop over them stands once in the code."""
    direction, products, embed, _ = kind
    halves, binary = (products + 1) // 2, binaries()[arch, kind]
    of_z = [8 * products, halves + 8, 0]  # 64 channels of a warp
    pairs, blocks = (2, 1) if embed == 64 else (1, 2)
    of_features = [3 * 2 * pairs, 2, 2 * pairs]  # 32 or 16 channels of a warp, and ∂z always in two halves
    of_weight = [products * 4 * blocks, 2 * halves + 2 * blocks, 0]  # 16 or 32 channels of z, 32 of the features
    used = [of_z] if direction == "forward" else [of_z, of_features, of_weight]
    patterns = [r"HMMA\.16816\.F32$", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"]
    assert [binary.count(pattern) for pattern in patterns] == [sum(counts) for counts in zip(*used, strict=True)]
    assert binary.count(r"HMMA") == binary.count(patterns[0])


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_w_is_copied_asynchronously_in_chunks_of_16_bytes(arch: int, kind: Kind) -> None:
    binary = binaries()[arch, kind]
    assert binary.count(r"LDGSTS.*\.128") == binary.count(r"LDGSTS") >= 1


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_what_orders_the_blocks_is_in_the_machine_code(arch: int, kind: Kind) -> None:
    assert_blocks_are_ordered(binaries()[arch, kind])


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_two_blocks_fit_on_a_multiprocessor(arch: int, kind: Kind) -> None:
    """The wide ones of the backward where it has 164 KiB of shared memory."""
    direction, products, embed, _ = kind
    registers = -(-binaries()[arch, kind].registers // 8) * 8
    assert BLOCKS * THREADS * registers <= REGISTERS
    shared = projection_twin.shared_bytes(products, embed, direction == "backward") + 1024
    assert BLOCKS * shared <= (LARGE_SHARED if direction == "backward" and embed == 128 else LEAST_SHARED)
    assert shared <= LEAST_SHARED
