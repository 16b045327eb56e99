"""The cascades that are compiled, and what their walks are made of: counts.json, beside this file.

python -m tests.triton.compiled.walks     counts anew, with the Triton that is installed; the commit says why that changed
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch

from difnet_kernels.backends import triton as triton_backend
from tests.triton.compiled.compile_only import VERSION, Binary, compiled_for

COUNTS = Path(__file__).with_name("counts.json")
WALKS = ("walk_forward_kernel", "walk_backward_kernel")
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Build:
    """One cascade to compile. processors > 0 lets the plan split the columns: parts, which the last program adds; bias: it
    has one, and bias and lse have gradients; whole: with the kernels between the walks, which are the same in many."""

    arch: int
    embed: int
    classes: int
    dtype: torch.dtype = FP32
    precision: str = "high"
    processors: int = 0
    bias: bool = False
    whole: bool = False

    def __str__(self) -> str:
        more = ("-split" if self.processors else "") + ("-bias" if self.bias else "")
        return f"sm{self.arch}-D{self.embed}-K{self.classes}-{str(self.dtype)[6:]}-{self.precision}{more}"


# the paper's walk on every architecture in every arithmetic; wider problems where their row differs
BUILDS = (
    *(Build(arch, 64, 21, whole=True) for arch in (80, 90, 100, 120)),
    Build(90, 64, 21, precision="medium"),
    Build(80, 64, 21, FP16, whole=True),
    Build(90, 64, 21, BF16, whole=True),
    Build(120, 64, 21, BF16),
    *(Build(arch, 128, 60) for arch in (80, 100)),
    Build(90, 128, 60, whole=True),
    Build(90, 3, 21, processors=132),
    Build(90, 64, 21, processors=132),
    Build(90, 64, 21, BF16, processors=132),
    Build(90, 128, 60, FP16),
    Build(90, 256, 63),
    Build(90, 256, 63, BF16),
    Build(80, 256, 63),
    *(Build(arch, 128, 127) for arch in (90, 120)),
    Build(90, 64, 150, whole=True),
    Build(90, 768, 21, whole=True),
    Build(90, 768, 21, BF16),
    Build(80, 64, 21, bias=True),
    Build(90, 64, 21, bias=True, whole=True),
    Build(90, 64, 21, BF16, bias=True),
)


@lru_cache(maxsize=len(BUILDS))
def built(build: Build) -> list[Binary]:
    N = 2000 if build.processors else 200
    seed = torch.zeros((1, build.classes, N), dtype=build.dtype)
    psi = [torch.zeros((1, build.embed, N), dtype=build.dtype)]
    gates, walked, row_lse = torch.zeros(1), torch.empty((1, 1, N, build.classes)), torch.empty((1, 1, N))
    lse = [torch.zeros((1, N))] if build.bias else []
    with compiled_for(build.arch, build.processors, only=() if build.whole else WALKS) as found:
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
    found = [binary for binary in built(build) if binary.kernel in WALKS]
    assert len(found) >= 2
    return found


@dataclass(frozen=True)
class Count:
    """Instructions in one turn of the loop, those of them that use the stack, and bytes of stack."""

    turn: int
    spilled: int
    stack: int

    @staticmethod
    def of(binary: Binary) -> Count:
        return Count(sum(binary.loop.values()), binary.loop_count("LDL", "STL"), binary.stack)


def mode(binary: Binary) -> str:
    """Which of the walks of a build it is: backward, a wide problem has one for psi and one for P_ji h."""
    parts = [name for name in ("psi", "moved") if binary.constants.get(f"WANT_{name.upper()}")]
    return "+".join(["backward", *parts]) if parts else "forward"


@cache
def recorded() -> dict[str, dict[str, dict[str, list[int]]]]:
    """By version of Triton, build and mode what a Count has."""
    return json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}


def allowed(build: Build, mode: str) -> Count:
    """What was counted; with a version that was not, a third more than the newest of them needs, and a few values."""
    version = ".".join(map(str, VERSION))
    if version in recorded():
        return Count(*recorded()[version][str(build)][mode])
    turn, spilled, stack = list(recorded().values())[-1][str(build)][mode]
    return Count(4 * turn // 3, spilled + 12, stack + 200)


def main() -> None:
    counts = {str(build): {mode(b): list(vars(Count.of(b)).values()) for b in walks(build)} for build in BUILDS}
    told = sorted({**recorded(), ".".join(map(str, VERSION)): counts}.items(), key=lambda of: int(of[0].split(".")[1]))
    tables = []
    for version, builds in told:
        lines = ",\n".join(f"  {json.dumps(build)}: {json.dumps(of)}" for build, of in builds.items())
        tables.append(f' "{version}": {{\n{lines}\n }}')
    COUNTS.write_text("{\n" + ",\n".join(tables) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
