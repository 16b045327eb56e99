"""The kernels of Ψ on the CPU, as twin.py has those of a cascade."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from difnet_kernels.backends.cuda import projection_counters_size
from tests.cuda.twin import CARD, ROOT, Machine, Options, Report, TwinError, compile_host

DTYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3, torch.int32: 0}  # DType of csrc/field.h


class Volume(ctypes.Structure):
    """As csrc/cuda/projection.h."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("channel_stride", ctypes.c_int64),
        ("stride", ctypes.c_int64 * 3), ("channels", ctypes.c_int32), ("dtype", ctypes.c_int8),
    ]  # fmt: skip

    @staticmethod
    def of(x: Tensor | None) -> Volume:
        """Without data for None."""
        if x is None:
            return Volume()
        batch, channel, *axes = x.stride()
        return Volume(x.data_ptr(), batch, channel, (ctypes.c_int64 * 3)(*axes), x.shape[1], DTYPES[x.dtype])


class ProjectionRequest(ctypes.Structure):
    """As csrc/cuda/projection_launches.h."""

    _fields_ = [
        ("images", ctypes.c_int32), ("embed", ctypes.c_int32),
        ("pixels", ctypes.c_int32 * 3), ("nodes", ctypes.c_int32 * 3),
        *((name, Volume) for name in ("features", "peak", "position")),
        *((name, ctypes.c_void_p) for name in ("weight", "slope", "mean", "variance", "counters")),
        ("counters_size", ctypes.c_int64),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    made = compile_host("projection_twin.cpp", ROOT / "build" / "twin" / "projection.so", "-O2", "-fPIC", "-shared")
    loaded = ctypes.CDLL(str(made))
    sizes = (ctypes.c_int32 * 2)()
    loaded.twin_projection_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in (Volume, ProjectionRequest)]
    loaded.twin_projection_forward.restype = ctypes.c_bool
    return loaded


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
