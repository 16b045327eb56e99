"""What ptxas made of every launch row: matrix units used, copies asynchronous, nothing spilled, room for the planned
programs."""

from __future__ import annotations

import dataclasses

import pytest

from difnet_kernels.backends.triton.walk.rows import ROWS
from tests.triton.compiled.compile_only import MATRIX, SHARED_LIMIT, VERSION
from tests.triton.compiled.walks import BF16, BUILDS, WALKS, Build, Count, allowed, built, mode, walks

# of kernels that are not counted, bytes of stack around a loop and uses of it within: every compiler does that somewhere
KEPT, WITHIN = (8, 0) if VERSION == (3, 8) else (64, 4)


def untuned(build: Build) -> bool:
    """Where compilers before 3.8 make slow code of right sources: they spill with D = 256 and in the sm_100 backward, whose
    stream they partly leave to plain loads and buffer more."""
    return VERSION < (3, 8) and (build.arch == 100 or build.embed > 128)


each_build = pytest.mark.parametrize("build", BUILDS, ids=str)


@each_build
def test_nothing_is_spilled(build: Build) -> None:
    """But for the few values that `counts.json` has."""
    for binary in [] if untuned(build) else built(build):
        if binary.kernel not in WALKS:
            assert binary.stack <= KEPT, f"{binary}: {binary.stack} bytes of stack"
            assert binary.loop_count("LDL", "STL") <= WITHIN, str(binary)


@each_build
def test_a_walk_has_no_more_instructions_than_were_counted(build: Build) -> None:
    """In one turn of its loop, and on the stack."""
    for binary in walks(build):
        now, then = Count.of(binary), allowed(build, mode(binary))
        assert now.turn <= then.turn and now.spilled <= then.spilled and now.stack <= then.stack, (binary, now, then)


# what reads or writes global memory (ATOMS is shared memory, where sm_100 gives out its tensor memory)
MEMORY = ("LDG", "LD.", "STG", "ST.", "ATOMG", "ATOM.", "REDG", "RED.", "UBLKCP")


@each_build
def test_a_kernel_waits_its_turn_before_it_touches_memory(build: Build) -> None:
    """From sm_90 on it may be started before the one in front has ended: ACQBULK waits for that one, PREEXIT lets the next
    one come."""
    for binary in built(build):
        turn = [name for name in binary.code if name.startswith((*MEMORY, "ACQBULK", "PREEXIT"))]
        if build.arch < 90:
            assert binary.count("ACQBULK", "PREEXIT") == 0, str(binary)
        else:
            assert turn[0].startswith("ACQBULK") and turn[1].startswith("PREEXIT"), f"{binary}: {turn[:3]}"
            assert binary.count("ACQBULK", "PREEXIT") == 2, str(binary)


@each_build
def test_the_walks_use_the_matrix_units(build: Build) -> None:
    for binary in walks(build):
        tile = binary.constants
        # fewer than 64 rows are too few for a warp group and for tensor memory
        wanted = {90: "HGMMA", 100: "UTCHMMA"}.get(build.arch, "HMMA") if tile["I"] >= 64 else "HMMA"
        assert binary.loop_count(wanted) > 0, f"{binary}: {dict(binary.loop)}"
        # on the ordinary units W1 alone would take DP multiply-adds for each logit of a thread
        logits = tile["I"] * tile["J"] // (32 * binary.warps)
        assert binary.loop_count("FFMA") < tile["DP"] * logits, f"{binary}: {dict(binary.loop)}"


@each_build
def test_warp_group_products_are_not_serialised(build: Build) -> None:
    """One wait per product, not one per instruction: ptxas falls back to that when something else defines an
    accumulator."""
    for binary in walks(build):
        if binary.loop_count("HGMMA"):
            assert binary.loop_count("WARPGROUP") < binary.loop_count("HGMMA"), f"{binary}: {dict(binary.loop)}"


@each_build
def test_the_stream_is_copied_asynchronously(build: Build) -> None:
    for binary in walks(build):
        if binary.stages == 1:
            assert binary.constants["I"] == ROWS[-1].launch.rows, (
                f"{binary}: only the row that runs everywhere may do without"
            )
            continue
        assert binary.loop_count("LDGSTS", "UTMALDG") > 0, str(binary)
        # nothing of the stream is left to a plain load, which would wait for memory inside the loop (but on sm_100 before
        # Triton 3.9, and the row vectors of a wide ψ, whose loop holds the one over its channels)
        exempt = untuned(build) or binary.constants["WIDE"] or (build.arch == 100 and VERSION < (3, 9))
        plain = 0 if exempt else binary.loop_count("LDG.")
        assert plain == 0, f"{binary}: {dict(binary.loop)}"


@each_build
def test_shared_memory_and_registers_leave_the_planned_room(build: Build) -> None:
    for binary in built(build):
        assert binary.shared <= SHARED_LIMIT[build.arch], f"{binary}: {binary.shared} bytes"
        tile = binary.constants
        if binary.kernel in WALKS and binary.warps == 4 and tile["DP"] <= 64:
            wanted = 1 if untuned(build) else 2
            assert binary.programs_per_sm >= wanted, (
                f"{binary}: {binary.registers} registers, {binary.shared} bytes shared"
            )
        assert binary.programs_per_sm >= 1, str(binary)


def test_neighbouring_threads_lie_along_the_contiguous_axis() -> None:
    """Fields whose nodes are contiguous: a warp takes 32 nodes of one class or channel."""
    found = {binary.kernel: binary for binary in built(Build(90, 64, 21, whole=True))}
    fields = (
        "class_reach_kernel",
        "state_prepare_kernel",
        "state_store_kernel",
        "gradient_begin_kernel",
        "gradient_prepare_kernel",
        "gradient_end_kernel",
    )
    for name in fields:
        assert found[name].lanes((64, 32)) == {(32, 1)}, name
    assert found["psi_statistics_kernel"].lanes((32, 64)) == {(32, 1)}


def test_16_bit_embeddings_are_used_as_they_are() -> None:
    """One product of the given type: the bf16 walk multiplies bf16 operands."""
    bf16 = next(b for b in walks(Build(90, 64, 21, BF16, whole=True)) if b.kernel == "walk_forward_kernel")
    high = next(b for b in walks(Build(90, 64, 21, whole=True)) if b.kernel == "walk_forward_kernel")
    assert any("BF16" in name for name in bf16.loop if name.startswith(MATRIX))
    assert not any("BF16" in name for name in high.loop if name.startswith(MATRIX))
    assert high.loop_count("HGMMA") == 3 * bf16.loop_count("HGMMA")


@pytest.mark.parametrize("build", [build for build in BUILDS if build.bias], ids=str)
def test_a_bias_costs_the_stream_nothing(build: Build) -> None:
    """Forward it is the same binary, for the bias enters where ψ is prepared; backward the turn of the loop has no more
    instructions, but for what the scheduler makes of it."""
    with_bias, without = (
        {binary.kernel: binary for binary in walks(dataclasses.replace(build, bias=bias))} for bias in (True, False)
    )
    assert with_bias["walk_forward_kernel"].cubin == without["walk_forward_kernel"].cubin
    turns = [sum(found["walk_backward_kernel"].loop.values()) for found in (with_bias, without)]
    assert turns[0] <= 1.01 * turns[1], turns
