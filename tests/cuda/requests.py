"""What the kernels are asked, and what a run reports, as ctypes: field by field the structures of C++."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}  # DType of csrc/field.h


class BatchField(ctypes.Structure):
    """As csrc/cuda/arguments.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64), ("channel_stride", ctypes.c_int64), ("node_stride", ctypes.c_int64),
        ("channels", ctypes.c_int32), ("dtype", ctypes.c_int8),
    ]  # fmt: skip

    @staticmethod
    def of(x: Tensor | None) -> BatchField:
        """Without data for None."""
        if x is None:
            return BatchField()
        return BatchField(x.data_ptr(), *x.stride(), x.shape[1], DTYPES[x.dtype])


class Request(ctypes.Structure):
    """As csrc/cuda/cascade/launches.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("images", "nodes", "classes", "walks", "wanted", "high")),
        *((name, BatchField) for name in ("state", "seed", "states")),
        *((name, ctypes.c_void_p) for name in ("steps", "psi", "column_bias", "lse")),
        *((name, ctypes.c_void_p) for name in ("mu", "beta", "walked", "row_lse", "counters")),
        ("counters_size", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("processors", "forced_parts", "forced_all_parts", "walks_at_a_time")),
    ]  # fmt: skip


class BackwardRequest(ctypes.Structure):
    """As csrc/cuda/cascade/launches.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("images", "nodes", "classes", "walks", "given", "high", "has_state")),
        *((name, BatchField) for name in ("state", "seed", "grad_state", "grad_seed")),
        *((name, ctypes.c_void_p) for name in ("psi", "grad_psi", "grad_states", "column_bias", "grad_lse", "grad_bias")),
        *((name, ctypes.c_void_p) for name in ("mu", "beta", "walked", "row_lse", "grad_mu", "grad_beta", "counters")),
        ("counters_size", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("processors", "forced_parts", "forced_all_parts", "walks_at_a_time")),
    ]  # fmt: skip


class Volume(ctypes.Structure):
    """As csrc/cuda/projection/arguments.h."""

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
        dtype = 0 if x.dtype == torch.int32 else DTYPES[x.dtype]  # of positions nobody asks
        return Volume(x.data_ptr(), batch, channel, tuple(axes), x.shape[1], dtype)


class Array(ctypes.Structure):
    """As csrc/cuda/projection/arguments.h."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int8)]

    @staticmethod
    def of(x: Tensor | None) -> Array:
        """Without data for None."""
        assert x is None or x.is_contiguous()
        return Array() if x is None else Array(x.data_ptr(), DTYPES[x.dtype])


class Projection(ctypes.Structure):
    """As csrc/cuda/projection/arguments.h: what the caller gives, and the place of what the launch adds."""

    _fields_ = [
        ("features", Volume), ("pixels", ctypes.c_int32 * 3), ("_nodes", ctypes.c_int32 * 6), ("embed", ctypes.c_int32),
        ("weight", Array), ("slope", Array), ("_workspace", ctypes.c_void_p * 2),
    ]  # fmt: skip


class Level(ctypes.Structure):
    """As csrc/cuda/cascade/projected_arguments.h."""

    _fields_ = [
        ("psi", Projection), *((name, Array) for name in ("offset", "mean", "variance", "shift")),
        ("eps", ctypes.c_float), ("dtype", ctypes.c_int8),
    ]  # fmt: skip


class ProjectedRequest(ctypes.Structure):
    """As csrc/cuda/cascade/projected_arguments.h."""

    _fields_ = [
        ("cascade", Request), ("levels", ctypes.c_void_p), ("grid", ctypes.c_int32 * 3), ("root", ctypes.c_float),
    ]  # fmt: skip


class Options(ctypes.Structure):
    _fields_ = [("workers", ctypes.c_int32), ("schedule", ctypes.c_uint32)]


class Report(ctypes.Structure):
    """What a run has to say beside its results."""

    _fields_ = [
        ("error", ctypes.c_char * 600),
        *((name, ctypes.c_int64) for name in ("bank_conflicts", "instructions", "copied", "loaded")),
        *((name, ctypes.c_int32) for name in ("parts", "part_tiles", "all_parts", "launches")),
    ]  # fmt: skip
