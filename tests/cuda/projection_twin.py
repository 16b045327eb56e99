"""The kernels of Ψ on the CPU, as twin.py has those of a cascade."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from difnet_kernels.backends.cuda import projection_backward_counters_size, projection_counters_size
from tests.cuda.twin import CARD, HOST, MADE, Machine, Options, Report, TwinError, Volume, compile_host


class ProjectionRequest(ctypes.Structure):
    """As csrc/cuda/projection/launches.h."""

    _fields_ = [
        ("images", ctypes.c_int32), ("embed", ctypes.c_int32),
        ("pixels", ctypes.c_int32 * 3), ("nodes", ctypes.c_int32 * 3),
        *((name, Volume) for name in ("features", "peak", "position")),
        *((name, ctypes.c_void_p) for name in ("weight", "slope", "mean", "variance", "counters")),
        ("counters_size", ctypes.c_int64),
    ]  # fmt: skip


class ProjectionBackwardRequest(ctypes.Structure):
    """As csrc/cuda/projection/launches.h."""

    _fields_ = [
        ("images", ctypes.c_int32), ("embed", ctypes.c_int32),
        ("pixels", ctypes.c_int32 * 3), ("nodes", ctypes.c_int32 * 3),
        *((name, Volume) for name in ("features", "grad_peak", "position", "z", "grad_features")),
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "grad_mean", "grad_variance", "grad_weight", "counters")),
        ("counters_size", ctypes.c_int64), ("forced_round_tiles", ctypes.c_int32),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    made = compile_host(
        "projections.cpp", MADE / "projection.so", "-O2", "-fPIC", "-shared", str(HOST / "projection_twin.cpp")
    )
    loaded = ctypes.CDLL(str(made))
    sizes = (ctypes.c_int32 * 3)()
    loaded.twin_projection_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in (Volume, ProjectionRequest, ProjectionBackwardRequest)]
    loaded.twin_projection_forward.restype = loaded.twin_projection_backward.restype = ctypes.c_bool
    return loaded


def shared_bytes(products: int, embed: int, backward: bool) -> int:
    """Shared memory of a block of a compiled kernel."""
    return int(library().twin_projection_shared_bytes(products, embed, backward))


def _axes(sizes: tuple[int, ...]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * 3)(*sizes)


def _pointer(x: Tensor | None) -> int | None:
    assert x is None or (x.is_contiguous() and x.dtype == torch.float32)
    return None if x is None else x.data_ptr()


def projection_forward(
    features: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    *,
    peak: Tensor,
    position: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    machine: Machine = CARD,
) -> Report:
    """Ψ1 into preallocated results, as every backend: features (B, C, Z, Y, X), peak and position (B, D, *grid)."""
    grid = tuple(peak.shape[2:])
    counters = torch.zeros(projection_counters_size(features.shape[0], grid), dtype=torch.int32)
    request = ProjectionRequest(
        features.shape[0], weight.shape[0], _axes(tuple(features.shape[2:])), _axes(grid),
        *(Volume.of(x) for x in (features, peak, position)),
        *(_pointer(x) for x in (weight, slope, mean, variance)), counters.data_ptr(), counters.numel(),
    )  # fmt: skip
    options, report = Options(machine.workers, machine.schedule), Report()
    if not library().twin_projection_forward(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report)):
        raise TwinError(report.error.decode())
    return report


def projection_backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    mean: Tensor | None,
    *,
    z: Tensor | None = None,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
    machine: Machine = CARD,
    round_tiles: int = 0,
) -> Report:
    """Ψ2-Ψ4 into preallocated gradients, as every backend; None: not wanted. round_tiles: 0 leaves them to the plan."""
    pixels = tuple(features.shape[2:])
    size = projection_backward_counters_size(features, round_tiles)
    counters = torch.zeros(size, dtype=torch.int32)
    request = ProjectionBackwardRequest(
        features.shape[0], weight.shape[0], _axes(pixels), _axes(tuple(position.shape[2:])),
        *(Volume.of(x) for x in (features, grad_peak, position, z, grad_features)),
        *(_pointer(x) for x in (weight, mean, grad_mean, grad_variance, grad_weight)),
        counters.data_ptr(), counters.numel(), round_tiles,
    )  # fmt: skip
    options, report = Options(machine.workers, machine.schedule), Report()
    if not library().twin_projection_backward(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report)):
        raise TwinError(report.error.decode())
    return report
