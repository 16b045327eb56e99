"""What a launch tells: the first one of a binary at debug level, a failed one with its launch row and its case."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import build
from triton.runtime.errors import OutOfResources, PTXASError

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton import failures, launch
from tests.triton.compiled.compile_only import Binary, compiled_for

ROOT = Path(__file__).parents[3]


def forward(mu: Tensor, nodes: int = 70) -> list[Binary]:
    """The binaries of one walk of the paper's sizes, which the other files compile, too, as for 132 SMs of sm_90."""
    seed, psi = torch.empty((1, 21, nodes)), [torch.empty((1, 64, nodes))]
    walked, row_lse = torch.empty((1, 1, nodes, 21)), torch.empty((1, 1, nodes))
    with compiled_for(90, 132) as found:
        triton_backend.cascade_forward(
            None, seed, psi, mu, mu, "high", states=torch.empty_like(seed)[None], walked=walked, row_lse=row_lse
        )
    return found


def test_the_first_launch_of_a_binary_is_told_at_debug_level(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "_told", set())
    with caplog.at_level(logging.INFO, "difnet_kernels"):
        binaries = forward(torch.empty(1))
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "difnet_kernels"):
        forward(torch.empty(1))
        assert len(caplog.records) == len(binaries)
        forward(torch.empty(1))
    assert len(caplog.records) == len(binaries)
    walk = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("walk_forward:"))
    for said in ("'I': 128, 'J': 64", "4 warps, 2 stages", "N=70", "K=21", "psi_hi_ptr: torch.float16"):
        assert said in walk, walk


@launch.kernel
def refused_kernel(x_ptr, N, WIDTH: tl.constexpr, PDL: tl.constexpr):
    tl.static_assert(WIDTH < 0, "too wide")


@launch.kernel
def written_kernel(x_ptr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, WIDTH), 1.0)


def test_every_kernel_begins_with_its_turn() -> None:
    """The one line that orders it behind the kernel in front, where the card starts kernels early."""
    kernels = 0
    for path in Path(str(triton_backend.__file__)).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "kernel" for d in node.decorator_list):
                kernels += 1
                assert ast.get_docstring(node) and ast.unparse(node.body[1]) == "in_turn(PDL)", node.name
    assert kernels == 20


def test_a_kernel_that_does_not_compile_names_launch_row_and_case() -> None:
    with compiled_for(90, 132), pytest.raises(RuntimeError, match=r"(?s)refused did not run.*too wide") as raised:
        launch.launch("refused", refused_kernel, 7, dict(x_ptr=torch.empty(3), N=3, WIDTH=2), warps=8, stages=3)
    for said in (
        "8 warps, 3 stages, {'WIDTH': 2, 'PDL': True}",
        "7 programs, x_ptr: torch.float32, N=3",
        "backend='cpu'",
    ):
        assert said in str(raised.value), raised.value


@pytest.mark.parametrize(
    ("error", "advised"),
    (
        (OutOfResources(240_000, 232_448, "shared memory"), ""),
        (PTXASError("`ptxas` failed with error code 1"), ""),
        (RuntimeError("Triton Error [CUDA]: invalid argument"), ""),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "CUDA_LAUNCH_BLOCKING=1"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c", "-o", "cuda_utils.so"]), "install gcc or clang"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable"), "variable CC"),
        (FileNotFoundError(2, "No such file or directory", "ptxas"), ""),
        (PermissionError(13, "Permission denied", "/nobody/.triton/cache"), "TRITON_CACHE_DIR"),
        (OSError(28, "No space left on device"), "TRITON_CACHE_DIR"),
        (
            FileNotFoundError(2, "No such file or directory", f"{failures._cache()}/key/tmp.pid_7/x.json"),
            "each process",
        ),
        (ImportError("cuda_utils.so: undefined symbol"), ""),
    ),
    ids=str,
)
def test_a_launch_that_the_card_refuses_names_launch_row_and_case(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advised: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    failed = pytest.raises(RuntimeError, match=r"(?s)Launch row: 4 warps.*N=3")
    with compiled_for(90, 132), monkeypatch.context() as patch, failed as raised:
        patch.setattr(triton.JITFunction, "run", refuse)
        launch.launch("refused", refused_kernel, 7, dict(x_ptr=torch.empty(3), N=3, WIDTH=2))
    said = str(raised.value)
    assert str(error) in said and raised.value.__cause__ is error
    assert advised in said and (advised or ". Use backend" in said), said


def test_missing_headers_of_python_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    said = failures.advice(subprocess.CalledProcessError(1, ["gcc"]))
    assert str(tmp_path) in said and "python3-dev" in said


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By Triton's own cache: a file stands where its folder should be."""
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    with compiled_for(90, 132), pytest.raises(RuntimeError, match=r"set TRITON_CACHE_DIR") as raised:
        launch.launch("uncached", written_kernel, 1, dict(x_ptr=torch.empty(3), WIDTH=2))
    assert str(tmp_path / "cache") in str(raised.value)


def test_a_c_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By Triton's own build of a launcher."""

    def launched(self: object, *given: object, **options: object) -> None:
        build.compile_module_from_src("no C;", "launcher")

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(build, "_find_compiler", lambda language: "false", raising=False)  # newer versions remember CC
    with compiled_for(90, 132), monkeypatch.context() as patch, pytest.raises(RuntimeError, match="variable CC"):
        patch.setattr(triton.JITFunction, "run", launched)
        launch.launch("unlinked", written_kernel, 1, dict(x_ptr=torch.empty(3), WIDTH=2))


RANK = """
import sys
import time
from pathlib import Path
import torch
from tests.triton.compiled.compile_only import compiled_for
from tests.triton.compiled.test_launch import launch, written_kernel

here = Path(sys.argv[1])
(here / sys.argv[2]).touch()
while not all((here / rank).exists() for rank in "ab"):
    time.sleep(0.01)
with compiled_for(90, 132) as found:
    for width in (2, 4, 8):
        launch.launch("written", written_kernel, 1, dict(x_ptr=torch.empty(8), WIDTH=width))
print([hash(binary.cubin) for binary in found])
"""


def test_ranks_may_compile_the_same_kernels_at_once(tmp_path: Path) -> None:
    """Into one empty cache: all have the same binaries, and nothing half-written stays."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "0"}
    started = dict(cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), rank], **started) for rank in "ab"]
    told = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0] and told[0] == told[1], told
    assert len(list((tmp_path / "cache").glob("*/*.cubin"))) == 3
    assert not list((tmp_path / "cache").glob("*/tmp.*"))


def test_gates_from_within_a_tensor_and_other_sizes_do_not_compile_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was launched once can be captured in a CUDA graph; a binary that had to be loaded there could not."""
    monkeypatch.setattr(launch, "_told", set())
    gates = torch.empty(3)
    with caplog.at_level(logging.DEBUG, "difnet_kernels"):
        forward(gates[:1])
        told = len(caplog.records)
        forward(gates[1:2], nodes=83)
    assert 0 < told == len(caplog.records), caplog.records[-1].getMessage()
