"""Triton kernels for NVIDIA GPUs, sm_80 to sm_120 (and, for tests, the interpreter on a CPU)."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from difnet_kernels.backends.imported import Imported
from difnet_kernels.problem import Problem, Projection

MAX_EMBED = 1280
TILE = 256  # channels that fit one tile
MIN_ARCH = 80
LAST_OFFSET = 2**31 - 2**16  # a tile may reach past the end


@functools.cache
def unusable() -> str | None:
    """Why no problem can run here; None if Triton and a GPU it compiles for are present (or the interpreter is on)."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with CUDA builds of torch on Linux)"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return None
    if torch.version.hip is not None:
        return "this torch is built for ROCm; the kernels are written for NVIDIA's matrix units"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA device"
    too_old = [_too_old(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return None if None in too_old else too_old[0]


@functools.cache
def _too_old(device: torch.device) -> str | None:
    """Why the kernels do not run on this GPU, whichever is the current one."""
    if not torch.cuda.is_available():
        return None  # which `unusable` says
    major, minor = torch.cuda.get_device_capability(device)
    if major * 10 + minor < MIN_ARCH:
        return f"the GPU is sm_{major}{minor}; the kernels need sm_{MIN_ARCH} or later"
    return None


def _elsewhere(device: torch.device) -> str | None:
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}; move them to a CUDA device"
    return _too_old(device)


def refuses(problem: Problem) -> str | None:
    """Why this problem cannot run although the backend can."""
    elsewhere = _elsewhere(problem.device)
    if elsewhere is not None:
        return elsewhere
    if torch.float64 in problem.dtypes:
        return "float64 has no fast matrix units; use float32, or another backend"
    widest = max(problem.embeds)
    if widest > MAX_EMBED:
        return f"D = {widest} is above {MAX_EMBED}, the widest that its walks take; use backend='cpu' or 'reference'"
    padded = max(TILE, -(-widest // TILE) * TILE)
    if problem.nodes * max(padded, problem.classes) >= 2**31:
        return (
            f"N = {problem.nodes} with D = {widest}, K = {problem.classes} passes 2^31 / max({padded}, K), where the 32-bit "
            "offsets inside an image end"
        )
    return None


def refuses_projection(problem: Projection) -> str | None:
    """Why this projection Ψ cannot run although the backend can."""
    elsewhere = _elsewhere(problem.device)
    if elsewhere is not None:
        return elsewhere
    if torch.float64 in problem.dtypes:
        return "float64 has no fast matrix units; use float32, or another backend"
    if problem.embed > TILE:
        return f"D = {problem.embed} is above {TILE}, the widest tile that fits shared memory"
    if max(problem.pixels, problem.nodes, TILE * problem.channels) > LAST_OFFSET:
        return (
            f"{problem.pixels} pixels, {problem.nodes} nodes or {TILE} times {problem.channels} channels pass "
            f"{LAST_OFFSET}, where the 32-bit offsets inside an image end"
        )
    return None


# Triton takes long to import: the first call does it
cascade_forward = Imported(f"{__name__}.walk.host", "cascade_forward")
cascade_backward = Imported(f"{__name__}.walk.host_backward", "cascade_backward")
projection_forward = Imported(f"{__name__}.projection.host", "projection_forward")
projection_backward = Imported(f"{__name__}.projection.host", "projection_backward")
