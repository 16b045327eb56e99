"""The kernels of csrc/cuda on the CPU: compiled by g++ against tests/cuda/host, every CUDA thread a fiber, called by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difnet_kernels.backends.cuda import counters_size, projected_counters_size
from tests.cuda.requests import (
    DTYPES,
    Array,
    BackwardRequest,
    BatchField,
    Level,
    Options,
    ProjectedRequest,
    Projection,
    Report,
    Request,
    Volume,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS, HOST, MADE = ROOT / "csrc" / "cuda", HERE / "host", ROOT / "build" / "twin"
FLAGS = (
    "-std=c++20",
    "-mavx2",
    "-mf16c",
    "-mfma",
    "-ffp-contract=off",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
)
H100 = 132  # multiprocessors of the card that is modelled


@dataclass(frozen=True)
class Machine:
    """The card that is modelled, and what the kernels may not depend on: the number of blocks and who runs when."""

    workers: int = 8
    schedule: int = 1
    processors: int = H100
    parts: int = 0  # 0: as split_plan cuts
    all_parts: bool = False
    walks_at_a_time: int = 0  # 0: as many as a launch takes


CARD = Machine()
address, by_reference = ctypes.addressof, ctypes.byref


class TwinError(RuntimeError):
    """The twin saw what a kernel may not do."""


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))


def run_compiler(*arguments: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler is not None, "the twin needs g++"
    done = subprocess.run([compiler, *FLAGS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr[-6000:]}"


def compile_host(source: str, to: Path, *flags: str, kernels: Path = KERNELS) -> Path:
    """A file of tests/cuda/host against `kernels`, a folder named cuda, compiled unless the same was compiled before."""
    digest = hashlib.sha256(repr((source, flags)).encode())
    for folder in (HOST, kernels):
        for path in sources(folder):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    made = to.with_name(f"{to.stem}-{digest.hexdigest()[:16]}{to.suffix}")
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_name(f"{made.name}.{os.getpid()}")
        places = [f"-I{place}" for place in (HOST, kernels.parent, ROOT / "csrc")]
        run_compiler(*flags, *places, str(HOST / source), "-o", str(partial))
        partial.replace(made)
    return made


@cache
def driver(source: str) -> str:
    """A program that runs kernels, without them: they are compiled beside it, and it needs no detector."""
    return str(compile_host(source, MADE / source.replace(".cpp", ".o"), "-O2", "-c"))


@cache
def library() -> ctypes.CDLL:
    made = compile_host("cascades.cpp", MADE / "twin.so", "-O2", "-fPIC", "-shared", str(HOST / "twin.cpp"))
    loaded = ctypes.CDLL(str(made))
    kinds = (BatchField, Request, Options, Report, BackwardRequest, ProjectedRequest, Level)
    sizes = (ctypes.c_int32 * len(kinds))()
    loaded.twin_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in kinds]
    loaded.twin_cascade_forward.restype = loaded.twin_cascade_backward.restype = ctypes.c_bool
    for count in (loaded.twin_host_work, loaded.twin_workspace_forward, loaded.twin_workspace_backward):
        count.restype = ctypes.c_int64
    loaded.twin_projected_cascade.restype = ctypes.c_bool
    return loaded


def split_columns(
    batch: int, row_tiles: int, columns: int, processors: int, in_registers: bool
) -> tuple[int, int, bool]:
    """csrc/cuda/split.h."""
    to = (ctypes.c_int32 * 3)()
    arguments = [ctypes.c_int64(x) for x in (batch, row_tiles, columns, processors)]
    library().twin_split_columns(*arguments, ctypes.c_bool(in_registers), to)
    return to[0], to[1], bool(to[2])


def tile_of(products: int, embed: int, width: int, backward: bool = False) -> int:
    """Nodes of a column tile of a compiled kernel."""
    return int(library().twin_tile(products, embed, width, backward))


def shared_bytes(products: int, embed: int, width: int, direction: str = "forward") -> int:
    """Shared memory of a block of a compiled kernel: "forward", "backward", or "projected" (Ψ in the launch)."""
    ways = ("forward", "backward", "projected")
    return int(library().twin_shared_bytes(products, embed, width, ways.index(direction)))


def request_of(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    states: Sequence[Tensor],
    walked: Tensor | None,
    row_lse: Tensor | None,
    counters: Tensor,
    machine: Machine,
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
) -> tuple[Request, list[object]]:
    """The request, and what has to live as long as it does."""
    B, K, N = seed.shape
    fields = (BatchField * len(psi))(*(BatchField.of(p) for p in psi))
    assert all(y.stride() == states[0].stride() and y.dtype == states[0].dtype for y in states)
    assert all(x is None or (x.is_contiguous() and x.dtype == torch.float32) for x in (*bias, *lse))
    lists = [_pointers(states), _pointers(bias), _pointers(lse)]
    steps, biases, lses = (None if of is None else ctypes.addressof(of) for of in lists)
    request = Request(
        B, N, K, len(psi), len(states), precision == "high",
        BatchField.of(seed if state is None else state), BatchField.of(seed), BatchField.of(states[0]),
        steps, ctypes.addressof(fields), biases, lses, mu.data_ptr(), beta.data_ptr(),
        None if walked is None else walked.data_ptr(), None if row_lse is None else row_lse.data_ptr(),
        counters.data_ptr(), counters.numel(),
        machine.processors, machine.parts, machine.all_parts, machine.walks_at_a_time,
    )  # fmt: skip
    return request, [fields, *lists]


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p] | None:
    """Where each lies; None for no list at all."""
    if len(tensors) == 0:
        return None
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Sequence[Tensor],
    walked: Tensor | None,
    row_lse: Tensor | None,
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
    machine: Machine = CARD,
) -> Report:
    """W1-W5 into preallocated outputs, as every backend: state, seed (B, K, N), psi (B, D_t, N), states S times (B, K, N)."""
    counters = torch.zeros(counters_size(seed.shape[0], seed.shape[2], len(psi)), dtype=torch.int32)
    mu, beta = mu.contiguous(), beta.contiguous()
    request, _kept = request_of(
        state, seed, psi, mu, beta, precision, states, walked, row_lse, counters, machine, bias, lse
    )
    options, report = Options(machine.workers, machine.schedule), Report()
    if not library().twin_cascade_forward(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report)):
        raise TwinError(report.error.decode())
    return report


def backward_request_of(
    grad_states: Sequence[Tensor],
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    counters: Tensor,
    *,
    grad_state: Tensor | None,
    grad_seed: Tensor | None,
    grad_psi: Sequence[Tensor | None],
    grad_mu: Tensor | None,
    grad_beta: Tensor | None,
    bias: Sequence[Tensor | None] = (),
    grad_lse: Sequence[Tensor | None] = (),
    grad_bias: Sequence[Tensor | None] = (),
    machine: Machine = CARD,
) -> tuple[BackwardRequest, list[object]]:
    """The request, and what has to live as long as it does."""
    B, K, N = seed.shape
    lists = [(BatchField * len(of))(*(BatchField.of(x) for x in of)) for of in (psi, grad_psi, grad_states)]
    pointers = [_pointers(of) for of in (bias, grad_lse, grad_bias)]
    assert all(x is None or (x.is_contiguous() and x.dtype == torch.float32) for x in (*bias, *grad_lse, *grad_bias))
    request = BackwardRequest(
        B, N, K, len(psi), len(grad_states), precision == "high", state is not None,
        BatchField.of(seed if state is None else state), *(BatchField.of(x) for x in (seed, grad_state, grad_seed)),
        *(address(of) for of in lists), *(None if of is None else address(of) for of in pointers),
        *(None if x is None else x.data_ptr() for x in (mu, beta, walked, row_lse, grad_mu, grad_beta, counters)),
        counters.numel(), machine.processors, machine.parts, machine.all_parts, machine.walks_at_a_time,
    )  # fmt: skip
    return request, [*lists, *pointers]


def cascade_backward(
    grad_states: Sequence[Tensor],
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    *,
    machine: Machine = CARD,
    **grads: Any,
) -> Report:
    """B1-B8 into preallocated gradients, as every backend; None: not wanted."""
    counters = torch.zeros(counters_size(seed.shape[0], seed.shape[2], len(psi)), dtype=torch.int32)
    mu, beta = mu.contiguous(), beta.contiguous()
    given = (grad_states, state, seed, psi, mu, beta, walked, row_lse, precision)
    request, _kept = backward_request_of(*given, counters, machine=machine, **grads)
    options, report = Options(machine.workers, machine.schedule), Report()
    if not library().twin_cascade_backward(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report)):
        raise TwinError(report.error.decode())
    return report


def workspace(request: Request | BackwardRequest) -> tuple[int, int]:
    """Bytes of the first launch, which needs the most, and the number of launches."""
    launches = ctypes.c_int32()
    count = library().twin_workspace_forward if isinstance(request, Request) else library().twin_workspace_backward
    return int(count(ctypes.byref(request), ctypes.byref(launches))), launches.value


def projected_cascade(
    seed: Tensor,
    features: Sequence[Tensor],
    weight: Sequence[Tensor],
    offset: Sequence[Tensor | None],
    mean: Sequence[Tensor | None],
    variance: Sequence[Tensor | None],
    slope: Sequence[Tensor | None],
    shift: Sequence[Tensor | None],
    eps: Sequence[float],
    root: float,
    grid: Sequence[int],
    mu: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    precision: str,
    *,
    states: Sequence[Tensor],
    machine: Machine = CARD,
) -> Report:
    """Ψ1 and W1-W5 into preallocated states, as `backends.cuda.projected_cascade`."""
    T, (B, _, N) = len(features), seed.shape
    counters = torch.zeros(projected_counters_size(B, N, T), dtype=torch.int32)
    levels = (Level * T)()
    for t, (x, w) in enumerate(zip(features, weight, strict=True)):
        psi = Projection(
            features=Volume.of(x),
            pixels=tuple(x.shape[2:]),
            embed=w.shape[0],
            weight=Array.of(w),
            slope=Array.of(slope[t]),
        )
        vectors = (Array.of(each[t]) for each in (offset, mean, variance, shift))
        levels[t] = Level(psi, *vectors, eps[t], DTYPES[torch.promote_types(x.dtype, w.dtype)])
    mu, beta = mu.contiguous(), beta.contiguous()
    biases = () if bias is None else (bias,) * T
    cascade, kept = request_of(None, seed, [], mu, beta, precision, states, None, None, counters, machine, biases)
    cascade.walks, cascade.psi = T, None
    request = ProjectedRequest(cascade, ctypes.addressof(levels), tuple(grid), root)
    options, report = Options(machine.workers, machine.schedule), Report()
    if not library().twin_projected_cascade(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report)):
        raise TwinError(report.error.decode())
    assert kept
    return report
