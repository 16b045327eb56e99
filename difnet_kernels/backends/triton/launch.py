"""How a kernel is declared and launched: what compiles anew, arguments by name, errors and the log."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver

from .arithmetic import CHANNELS, NODES
from .direct import Direct, Key
from .failures import advice

LOG = logging.getLogger(__name__)
_told: set[str] = set()  # the binaries whose first launch was logged


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel, which is compiled anew for its constants and for nothing that a caller may vary.

    The rule: constants (`tl.constexpr`), dtypes and the alignment of `x_ptr` enter the binary; numbers (sizes, strides) and
    `given_x_ptr` do not. `given_` are the caller's tensors, which may begin anywhere; all others come from torch's
    allocator and are aligned. The features of Ψ go without `given_`: loads of whole vectors are worth a second binary.
    """
    constants, parameters = constants_of(function), inspect.signature(function).parameters
    plain = [
        name
        for name in parameters
        if name not in constants and (name.startswith("given_") or not name.endswith("_ptr"))
    ]
    made, direct = triton.jit(function, do_not_specialize=plain), Direct(parameters, constants)
    made.direct = direct if isinstance(made, triton.JITFunction) else None  # the interpreter compiles nothing
    return made


def _is_constant(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (tl.constexpr, "tl.constexpr")


@functools.cache
def constants_of(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters of a kernel's function that are compiled into it."""
    return frozenset(
        name for name, parameter in inspect.signature(function).parameters.items() if _is_constant(parameter)
    )


def launch(
    what: str,
    kernel: Any,
    programs: int,
    *groups: Mapping[str, Any],
    warps: int = 4,
    stages: int = 2,
    of: torch.dtype | None = None,
) -> None:
    """Runs `programs` programs on axis 0, the only grid axis without a limit of 65,535.

    groups: the arguments by name: pointers, sizes, strides, constants. of: see `Direct.started`. Contraction of a·b - c is
    off: a fused product would not be rounded like the maximum that is subtracted from it. Raises RuntimeError with the
    launch row and the case for whatever stops a kernel: its compiler, the C compiler of its launcher, the cache, the
    driver; and with what to do about it, where that is known (`failures`).
    """
    arguments: dict[str, Any] = {}
    for group in groups:
        arguments.update(group)
    direct: Direct | None = kernel.direct
    case, began = Key(), 0.0
    try:
        device = 0 if direct is None else driver.active.get_current_device()
        early = arguments["PDL"] = direct is not None and starts_early(device)
        if direct is not None:
            started = direct.started(device, arguments, programs, warps, stages, of)
            if started is None:
                return
            case = started
        began = time.perf_counter()
        options = dict(num_warps=warps, num_stages=stages, enable_fp_fusion=False) | (
            dict(launch_pdl=True) if early else {}
        )
        made = kernel[(programs,)](**arguments, **options)
        if direct is not None:
            direct.keep(case, made)
    except Exception as error:
        constants, sizes = _told_of(kernel, arguments)
        raise RuntimeError(
            f"the Triton kernel of {what} did not run: {error}\nLaunch row: {warps} warps, {stages} stages, {constants}. "
            f"Case: {programs} programs, {sizes}. {advice(error)}"
            "Use backend='cpu' or 'reference', or report the case with these lines."
        ) from error
    if LOG.isEnabledFor(logging.DEBUG) and made is not None and made.hash not in _told:
        _told.add(made.hash)
        LOG.debug(
            "%s: first launch, compiled or read from Triton's cache, took %.2f s: %d warps, %d stages, %s, %s",
            *(what, time.perf_counter() - began, warps, stages),
            *_told_of(kernel, arguments),
        )


@functools.cache
def starts_early(device: int) -> bool:
    """Whether this device, the current one, starts a kernel before the one in front has ended: from sm_90 on (`in_turn`)."""
    return bool(driver.active.get_current_target().arch >= 90)


def _told_of(kernel: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(constants, the rest as text: sizes and strides by name, the type of each tensor)."""
    names = constants_of(kernel.fn)

    def told(name: str, x: Any) -> str:
        first = x[0] if isinstance(x, tuple) else x
        return f"{name}: {first.dtype}" if isinstance(first, Tensor) else f"{name}={x}"

    case = ", ".join(told(name, x) for name, x in arguments.items() if name not in names)
    return {name: x for name, x in arguments.items() if name in names}, case


def strides(name: str, axes: str, x: Tensor) -> dict[str, int]:
    """The strides of x as arguments: name_a for every axis a."""
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, x.stride(), strict=True)}


def contiguous_axis(field: Tensor) -> int:
    """Which axis of (B, C, N) the kernels may take for contiguous: NODES, CHANNELS, or 0 for neither."""
    axis = NODES if field.stride(2) == 1 else CHANNELS if field.stride(1) == 1 else 0
    return int(getattr(axis, "value", axis))


@dataclass(frozen=True)
class Card:
    """Architecture (90 for sm_90) and number of SMs; (0, 0) is no card and takes the rows that run everywhere."""

    arch: int = 0
    processors: int = 0


def card_of(device: torch.device) -> Card:
    if device.type != "cuda":
        return Card()
    properties = torch.cuda.get_device_properties(device)
    return Card(properties.major * 10 + properties.minor, properties.multi_processor_count)


def on_device(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two ≥ n: widths are padded to it."""
    return max(least, 1 << (n - 1).bit_length())


def ceil_div(n: int, by: int) -> int:
    """n / by, rounded up. On the host, where `triton.cdiv` takes as long as a launch."""
    return -(-n // by)
