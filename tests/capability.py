"""What a backend takes and where, as its own `refuses` says: which tests are made for it, and on which device they run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from difnet_kernels.backends import BACKENDS
from difnet_kernels.problem import Problem

DEVICES = ("cpu", "cuda")  # in order: what takes tensors of the CPU is tested there


@cache
def takes(backend: str, device: str, dtype: torch.dtype = torch.float32, embed: int = 1) -> bool:
    """Whether a cascade of one node in this dtype and width, on this device, is one that `backend` would run."""
    field = torch.empty((1, 1, 1), dtype=dtype, device="cpu")
    smallest = Problem.of(field, [field.expand(1, embed, 1)], "high")
    return BACKENDS[backend].refuses(replace(smallest, device=torch.device(device))) is None


def device_of(backend: str) -> str:
    """The device of the tests of `backend`: the first that it takes."""
    return next(device for device in DEVICES if takes(backend, device))
