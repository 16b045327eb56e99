"""What a backend takes and where, as its own `refuses` says: which tests are made for it, and on which device they run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from difnet_kernels.backends import BACKENDS
from difnet_kernels.problem import Problem, Projection

DEVICES = ("cpu", "cuda")  # in order: what takes tensors of the CPU is tested there


@cache
def takes(
    backend: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    embed: int = 1,
    bias: bool = False,
    lse: bool = False,
    classes: int = 1,
    channels: int = 1,
) -> bool:
    """Whether a cascade of one node and a Ψ of one pixel, in this dtype and width and on this device, are such that
    `backend` would run both, or the cascade if it brings no Ψ; with a bias, and with an lse that has a gradient. channels:
    those of the features of Ψ."""
    run, place = BACKENDS[backend], torch.device(device)
    field = torch.empty((1, 1, 1), dtype=dtype, device="cpu")
    cascade = replace(Problem.of(field, [field.expand(1, embed, 1)], "high"), bias=bias, lse=lse, classes=classes)
    projection = replace(Projection.of(field, field[0].expand(embed, 1), (1,)), channels=channels)
    return run.refuses(replace(cascade, device=place)) is None and (
        run.projection_forward is None or run.refuses_projection(replace(projection, device=place)) is None
    )


def device_of(backend: str) -> str:
    """The device of the tests of `backend`: the first that it takes."""
    return next(device for device in DEVICES if takes(backend, device))
