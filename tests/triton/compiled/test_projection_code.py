"""What ptxas made of the projection's launch rows: matrix units used, copies asynchronous or vectors, nothing spilled,
room for the planned programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from difnet_kernels.backends import triton as triton_backend
from tests.triton.compiled.compile_only import MATRIX, SHARED_LIMIT, VERSION, Binary, compiled_for

FP32, BF16 = torch.float32, torch.bfloat16
# bytes of stack for what lies between two offsets, never inside the loop over the channels: at the edge of 255 registers
# every compiler keeps another few values there; a thread of sm_100 holds a channel's whole row of windows, and their statistics
MORE = 0 if VERSION == (3, 8) else 56  # than the compiler with which this was measured
KEPT, KEPT_BY_WIDE_ROWS = 8 + MORE, 288 + MORE
STREAMS = ("projection_forward_kernel", "projection_pixel_gradient_kernel", "projection_weight_gradient_kernel")


@dataclass(frozen=True)
class Build:
    """One Ψ, forward and backward; the sizes of the image only have to be ragged, the channels are the paper's."""

    arch: int
    channels: int
    dtype: torch.dtype = FP32
    channels_last: bool = True
    training: bool = True
    embed: int = 64

    def __str__(self) -> str:
        layout = "last" if self.channels_last else "first"
        mode = "training" if self.training else "eval"
        return f"sm{self.arch}-C{self.channels}-D{self.embed}-{str(self.dtype)[6:]}-{layout}-{mode}"


ARCHS = (80, 90, 100, 120)
BUILDS = (
    # each dtype in each layout, each layout in each mode; all four on Hopper, two on the others
    *(Build(arch, 256, FP32, True, False) for arch in (90, 100)),
    *(Build(arch, 256, FP32, False, True) for arch in (80, 90, 120)),
    *(Build(arch, 256, BF16, True, True) for arch in (80, 90, 120)),
    *(Build(arch, 256, BF16, False, False) for arch in (90, 100)),
    *(Build(arch, 3, FP32, False, True) for arch in ARCHS),
    *(Build(90, 3, dtype, last, False) for dtype in (FP32, BF16) for last in (True, False)),
    Build(90, 256, FP32, True, True),
    Build(90, 256, FP32, False, False),
    Build(90, 40),
    *(Build(arch, 256, embed=256) for arch in (90, 100, 120)),
    Build(90, 16, embed=16),
)


def compiled(build: Build) -> list[Binary]:
    shape = (1, build.channels, 1, 13, 13)
    memory = torch.channels_last_3d if build.channels_last else torch.contiguous_format
    features = torch.empty(shape, dtype=build.dtype).contiguous(memory_format=memory)
    weight, channel = torch.empty(build.embed, build.channels), torch.empty(build.embed)
    peak = torch.empty(1, 1, 7, 7, build.embed).permute(0, 4, 1, 2, 3)
    position = torch.empty(1, 1, 7, 7, build.embed, dtype=torch.int32).permute(0, 4, 1, 2, 3)
    statistics = channel if build.training else None
    with compiled_for(build.arch, processors=0) as found:
        triton_backend.projection_forward(
            features, weight, channel, peak=peak, position=position, mean=statistics, variance=statistics
        )
        triton_backend.projection_backward(
            peak,
            statistics,
            statistics,
            features,
            weight,
            position,
            statistics,
            grad_features=features,
            grad_weight=weight,
        )
    return found


@lru_cache(maxsize=len(BUILDS))
def built(build: Build) -> list[Binary]:
    return compiled(build)


def untuned(build: Build) -> bool:
    """Compilers before 3.8 spill a value or two inside the loops of sm_100."""
    return VERSION < (3, 8) and build.arch == 100


each_build = pytest.mark.parametrize("build", BUILDS, ids=str)


@each_build
def test_nothing_is_spilled(build: Build) -> None:
    assert len(built(build)) >= 3
    for binary in [] if untuned(build) else built(build):
        wide = build.arch == 100 and build.embed > 128 and binary.kernel == "projection_forward_kernel"
        assert binary.stack <= (KEPT_BY_WIDE_ROWS if wide else KEPT), f"{binary}: {binary.stack} bytes of stack"
        # the compiler of Triton 3.9 reads one value of this kernel again in every turn
        narrow = build.arch == 100 and binary.kernel == "projection_narrow_backward_kernel"
        assert binary.loop_count("LDL", "STL") <= int(narrow), str(binary)


@each_build
def test_products_run_where_they_should(build: Build) -> None:
    """On the matrix units from five channels on; up to four, by multiply-adds, because the units would multiply
    padding."""
    for binary in built(build):
        if build.channels <= 4:
            assert binary.count(*MATRIX) == 0, str(binary)
            if binary.kernel in ("projection_forward_kernel", "projection_narrow_backward_kernel"):
                assert binary.count("FFMA") > 0, str(binary)
        elif binary.kernel in (*STREAMS, "projection_feature_gradient_kernel"):
            if binary.kernel == "projection_pixel_gradient_kernel" and not build.training:
                continue  # nothing to project: z enters through the statistics alone
            # a warp group and tensor memory take 64 rows: channels of ψ, or of the features in their gradient
            rows = binary.constants["CC" if binary.kernel == "projection_feature_gradient_kernel" else "DP"]
            wanted = {90: "HGMMA", 100: "UTCHMMA"}.get(build.arch, "HMMA") if rows >= 64 else "HMMA"
            assert binary.loop_count(wanted) > 0, f"{binary}: {dict(binary.instructions)}"


@each_build
def test_the_features_are_streamed(build: Build) -> None:
    """Copied asynchronously; in vectors of 16 bytes where channels are contiguous. A 16-bit number whose neighbour in
    memory is another pixel has no asynchronous copy."""
    for binary in built(build):
        if build.channels <= 4 or binary.loop_count(*MATRIX) == 0:
            continue
        if binary.kernel in STREAMS and (binary.stages > 1 or build.embed <= 64):
            assert binary.loop_count("LDGSTS") > 0, f"{binary}: {dict(binary.loop)}"
            plain = binary.loop_count("LDG.")
            assert plain == 0 or (build.dtype != FP32 and not build.channels_last), f"{binary}: {dict(binary.loop)}"
        # (fewer numbers than four for every thread are no vectors of 16 bytes)
        if build.channels_last and build.channels % 64 == 0 and build.embed <= 64:
            single = [name for name in binary.loop if name.startswith(("LDGSTS", "LDG")) and not name.endswith("128")]
            assert not set(single) - {"LDGDEPBAR"}, f"{binary}: {dict(binary.loop)}"


@pytest.mark.parametrize("build", [build for build in BUILDS if build.channels <= 4], ids=str)
def test_the_next_pixel_of_few_channels_is_on_its_way(build: Build) -> None:
    """A program has one warp for each scheduler: nothing else hides the latency of a load."""
    forward = next(binary for binary in built(build) if binary.kernel == "projection_forward_kernel")
    # without statistics Triton 3.7 loads it where it is used
    late = VERSION == (3, 7) and not build.training
    assert forward.lead("LDG") >= (8 if late else 64), forward.turn


@pytest.mark.parametrize("dtype", (FP32, BF16), ids=["fp32", "bf16"])
def test_neighbouring_threads_lie_along_the_contiguous_axis(dtype: torch.dtype) -> None:
    """Pixels of features in planes, channels of the pooled fields; a warp that took the other axis would touch a line of
    memory with every thread."""
    planes = {binary.kernel: binary for binary in built(Build(90, 256, dtype, False, dtype is FP32))}
    forward, pixels = planes["projection_forward_kernel"], planes["projection_forward_kernel"].constants["J"]
    lanes = forward.lanes((64, pixels)) | {(b, a) for a, b in forward.lanes((pixels, 64))}
    # (channels, pixels): the features, and the best with its position
    assert lanes == {(32 // pixels, pixels), (32, 1)}, lanes
    lanes = planes["projection_feature_gradient_kernel"].lanes((64, 64))
    assert lanes == {(32, 1) if VERSION < (3, 7) else (1, 32)}, lanes  # the tile is turned for the older compilers


@each_build
def test_shared_memory_and_registers_leave_the_planned_room(build: Build) -> None:
    for binary in built(build):
        assert binary.shared <= SHARED_LIMIT[build.arch], f"{binary}: {binary.shared} bytes"
        # eight warps hide the memory's latency for each other, or two programs of four do
        programs = 2 if binary.warps == 4 else 1
        assert binary.programs_per_sm >= programs, f"{binary}: {binary.registers} registers, {binary.shared} bytes"


def test_sizes_do_not_compile_again() -> None:
    """2048 channels, and any sizes of the image, run the binaries of 256."""
    few, many = Build(90, 256, FP32, True, False), Build(90, 2048, FP32, True, False)
    assert {b.cubin for b in compiled(many)} == {b.cubin for b in built(few)}
