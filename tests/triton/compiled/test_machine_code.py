"""What ptxas made of every launch row: matrix units used, copies asynchronous, nothing spilled, room for the planned
programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton.walk.rows import ROWS
from tests.triton.compiled.compile_only import MATRIX, SHARED_LIMIT, VERSION, Binary, compiled_for

# the launch rows were chosen with Triton 3.9
OLDER = VERSION < (3, 9)
# bytes of stack around a loop, a value or two: every compiler does that somewhere, and those before 3.8 with more
KEPT = 16 if VERSION >= (3, 8) else 64
# bytes of stack for values that are written before a loop and read after it; within the loop there are none
AROUND = {
    ("sm90-D64-K21-float32-high", "walk_forward_kernel"): 32,
    ("sm90-D64-K21-float32-high-bias", "walk_forward_kernel"): 32,
    ("sm90-D128-K60-float32-high", "walk_backward_kernel"): 96,
    ("sm90-D128-K60-float16-high", "walk_backward_kernel"): 72,
    ("sm90-D768-K21-float32-high", "walk_backward_kernel"): 192,
    # (around the loop over the chunks of classes)
    ("sm90-D64-K150-float32-high", "walk_backward_kernel"): 536,
}
# stores and loads of the stack in one turn of the loop. At D = 128 the tile's product and the sum of psi's gradient take 128
# registers of a thread: eight of 627 instructions go to the stack. Eight warps, which need none, take 1.5 times as many
# instructions for the same pairs.
WITHIN = {
    ("sm90-D128-K60-float32-high", "walk_backward_kernel"): 10,
    # a slice of 256 channels beside the logits' three products: 44 of 1187 instructions; 32 rows need none, and 2.3 times as
    # many instructions for the same pairs
    ("sm90-D768-K21-float32-high", "walk_backward_kernel"): 44,
}
if VERSION < (3, 8):  # the rows end in registers: eight of 792 instructions go to the stack, and no partials to memory
    WITHIN |= {(f"sm90-D64-K21-bfloat16-high{bias}", "walk_backward_kernel"): 8 for bias in ("", "-bias")}

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Build:
    """One cascade to compile. processors > 0 lets the plan split the columns: parts, which the last program adds; bias: it
    has one, and bias and lse have gradients."""

    arch: int
    embed: int
    classes: int
    dtype: torch.dtype = FP32
    precision: str = "high"
    processors: int = 0
    bias: bool = False

    def __str__(self) -> str:
        more = ("-split" if self.processors else "") + ("-bias" if self.bias else "")
        return f"sm{self.arch}-D{self.embed}-K{self.classes}-{str(self.dtype)[6:]}-{self.precision}{more}"


# the paper's walk on every architecture in every arithmetic; wider problems where their row differs
BUILDS = (
    *(Build(arch, 64, 21) for arch in (80, 90, 100, 120)),
    Build(90, 64, 21, precision="medium"),
    *(Build(arch, 64, 21, dtype) for arch, dtype in ((80, FP16), (90, BF16), (120, BF16))),
    *(Build(arch, 128, 60) for arch in (80, 90)),
    Build(90, 3, 21, processors=132),
    Build(90, 64, 21, processors=132),
    Build(90, 64, 21, BF16, processors=132),
    Build(90, 128, 60, FP16),
    Build(90, 256, 63),
    Build(90, 256, 63, BF16),
    Build(120, 128, 127),
    Build(90, 64, 150),
    Build(90, 768, 21),
    Build(90, 768, 21, BF16),
    *(Build(arch, 64, 21, bias=True) for arch in (80, 90)),
    Build(90, 64, 21, BF16, bias=True),
)


@lru_cache(maxsize=len(BUILDS))
def built(build: Build) -> list[Binary]:
    N = 2000 if build.processors else 200
    seed = torch.zeros((1, build.classes, N), dtype=build.dtype)
    psi = [torch.zeros((1, build.embed, N), dtype=build.dtype)]
    gates, walked, row_lse = torch.zeros(1), torch.empty((1, 1, N, build.classes)), torch.empty((1, 1, N))
    lse = [torch.zeros((1, N))] if build.bias else []
    with compiled_for(build.arch, build.processors) as found:
        triton_backend.cascade_forward(
            *(None, seed, psi, gates, gates, build.precision),
            states=seed[None],
            walked=walked,
            row_lse=row_lse,
            bias=lse,
            lse=lse,
        )
        triton_backend.cascade_backward(
            seed[None],
            None,
            seed,
            psi,
            gates,
            gates,
            walked,
            row_lse,
            build.precision,
            grad_state=None,
            grad_seed=seed,
            grad_psi=psi,
            grad_mu=gates,
            grad_beta=gates,
            bias=lse,
            grad_lse=lse,
            grad_bias=lse,
        )
    return found


def walks(build: Build) -> list[Binary]:
    found = [binary for binary in built(build) if binary.kernel in ("walk_forward_kernel", "walk_backward_kernel")]
    assert len(found) >= 2
    return found


def untuned(build: Build) -> bool:
    """Where older compilers make slow code of right sources: they spill with D = 256 and in the sm_100 backward, whose
    stream they partly leave to plain loads and buffer more."""
    return OLDER and (build.arch == 100 or build.embed > 128)


each_build = pytest.mark.parametrize("build", BUILDS, ids=str)


@each_build
def test_nothing_is_spilled(build: Build) -> None:
    for binary in [] if untuned(build) else built(build):
        allowed = max(KEPT, AROUND.get((str(build), binary.kernel), 0))
        assert binary.stack <= allowed, f"{binary}: {binary.stack} bytes of stack"
        assert binary.loop_count("LDL", "STL") <= WITHIN.get((str(build), binary.kernel), 0), str(binary)


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
        # nothing of the stream is left to a plain load, which would wait for memory inside the loop
        # (but the row vectors of a wide ψ, whose loop holds the one over its channels)
        plain = 0 if untuned(build) or binary.constants["WIDE"] else binary.loop_count("LDG.")
        assert plain == 0, f"{binary}: {dict(binary.loop)}"


@each_build
def test_shared_memory_and_registers_leave_the_planned_room(build: Build) -> None:
    for binary in built(build):
        assert binary.shared <= SHARED_LIMIT[build.arch], f"{binary}: {binary.shared} bytes"
        tile = binary.constants
        if binary.kernel in ("walk_forward_kernel", "walk_backward_kernel") and binary.warps == 4 and tile["DP"] <= 64:
            wanted = 1 if untuned(build) else 2
            assert binary.programs_per_sm >= wanted, (
                f"{binary}: {binary.registers} registers, {binary.shared} bytes shared"
            )
        assert binary.programs_per_sm >= 1, str(binary)


def test_neighbouring_threads_lie_along_the_contiguous_axis() -> None:
    """Fields whose nodes are contiguous: a warp takes 32 nodes of one class or channel."""
    found = {binary.kernel: binary for binary in built(Build(90, 64, 21))}
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
    bf16 = next(b for b in walks(Build(90, 64, 21, BF16)) if b.kernel == "walk_forward_kernel")
    high = next(b for b in walks(Build(90, 64, 21)) if b.kernel == "walk_forward_kernel")
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
