"""From tensors to launches: padded sizes, operand types, tiles, and the one function that launches a kernel."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from . import launch_rows
from .arithmetic import CHANNELS, NODES, WEIGHT_SHIFT
from .launch_rows import Case, Launch

LOG = logging.getLogger(__name__)
_told: set[str] = set()  # the binaries whose first launch was logged
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
SHIFT = float(getattr(WEIGHT_SHIFT, "value", WEIGHT_SHIFT))


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


def power_of_two(n: int, least: int = 16) -> int:
    return max(least, 1 << (n - 1).bit_length())


@dataclass(frozen=True)
class Layout:
    """Sizes of the padded fields of one cascade: C chunks of KC classes in KP columns, n_pad nodes in units of PAD."""

    batch: int
    classes: int
    nodes: int
    chunks: int
    KC: int
    KP: int
    PAD: int
    units: int

    @property
    def n_pad(self) -> int:
        return self.PAD * self.units

    @property
    def block(self) -> int:
        """Rows per program of the elementwise kernels: fewer for wide tiles, which live in registers."""
        return min(self.PAD, 64 if self.KP <= 32 else 32)

    @staticmethod
    def of(seed: Tensor, psi: Sequence[Tensor], pad: int) -> Layout:
        batch, classes, nodes = seed.shape
        chunks, KC, KP = class_chunks(classes, max(p.shape[1] for p in psi))
        return Layout(batch, classes, nodes, chunks, KC, KP, pad, triton.cdiv(nodes, pad))

    def columns(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty((self.batch, self.chunks, self.n_pad, self.KP), dtype=dtype, device=like.device)

    def vector(self, like: Tensor) -> Tensor:
        return torch.empty((self.batch, self.n_pad), dtype=torch.float32, device=like.device)


def class_chunks(classes: int, embed: int) -> tuple[int, int, int]:
    """(chunks, classes per chunk, columns per chunk with the spare one): one chunk of up to 128 columns if K and D
    allow it, else chunks of 64."""
    chunks = triton.cdiv(classes, 127 if embed <= 128 and classes <= 127 else 63)
    per_chunk = triton.cdiv(classes, chunks)
    return chunks, per_chunk, power_of_two(per_chunk + 1)


@dataclass(frozen=True)
class Walk:
    """How one walk runs: operand type, products, padded width and tiles."""

    operand: torch.dtype
    centred: bool
    DP: int
    logit_products: int
    value_products: int
    launch: Launch


def plan_walks(kind: str, psi: Sequence[Tensor], seed: Tensor, precision: str, card: Card) -> list[Walk]:
    KP = class_chunks(seed.shape[1], max(p.shape[1] for p in psi))[2]
    return [plan_walk(kind, p, seed, KP, precision, card) for p in psi]


def plan_walk(kind: str, psi: Tensor, seed: Tensor, KP: int, precision: str, card: Card) -> Walk:
    """fp32 ψ is centred and split in halves ("high") or rounded once ("medium"); 16-bit ψ is used as it is."""
    exact = psi.dtype in (torch.float16, torch.bfloat16)
    high = precision == "high"
    logit_products = 3 if high and not exact else 1
    value_products = 3 if high and seed.dtype == torch.float32 else 1
    DP = power_of_two(psi.shape[1])
    launch = launch_rows.select(Case(kind, card.arch, DP, KP, logit_products, value_products, seed.shape[2]))
    operand = psi.dtype if exact else torch.float16
    if INTERPRETED and operand == torch.bfloat16:
        operand = torch.float32  # the interpreter multiplies bf16 bit patterns; fp32 holds the same values
    return Walk(operand, not exact, DP, logit_products, value_products, launch)


def launch(
    what: str, kernel: Any, programs: int, *args: Any, warps: int = 4, stages: int = 2, **constants: Any
) -> None:
    """Runs `programs` programs on axis 0, the only grid axis without a limit of 65,535. Contraction of a·b - c is off:
    a fused product would not be rounded like the maximum that is subtracted from it."""
    began = time.perf_counter()
    try:
        made = kernel[(programs,)](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=False)
    except (TritonError, RuntimeError) as error:
        raise RuntimeError(
            f"the Triton kernel of {what} did not run: {error}\nLaunch row: {warps} warps, {stages} stages, {constants}. "
            f"Case: {programs} programs, {_case(kernel, args)}. "
            "Use backend='cpu' or 'reference', or report the case with these lines."
        ) from error
    if LOG.isEnabledFor(logging.DEBUG) and made is not None and made.hash not in _told:
        _told.add(made.hash)
        LOG.debug(
            "%s: first launch, compiled or read from Triton's cache, took %.2f s: %d warps, %d stages, %s, %s",
            what, time.perf_counter() - began, warps, stages, constants, _case(kernel, args),
        )  # fmt: skip


def _case(kernel: Any, args: Sequence[Any]) -> str:
    """What a launch was given: sizes and strides by name, and the type of each tensor."""
    given = zip(kernel.arg_names, args, strict=False)
    return ", ".join(f"{name}: {x.dtype}" if isinstance(x, Tensor) else f"{name}={x}" for name, x in given)


@contextmanager
def fp32_for_interpreter(tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[Callable[[Any], Any]]:
    """The interpreter reads and writes bf16 wrongly: swap bf16 tensors for fp32 ones, and copy the outputs back."""
    swapped = {id(x): (x, x.float()) for x in (*tensors, *outputs) if x.dtype == torch.bfloat16}
    yield lambda x: swapped[id(x)][1] if id(x) in swapped else x
    for x in outputs:
        if id(x) in swapped:
            x.copy_(swapped[id(x)][1])


def contiguous_axis(field: Tensor) -> int:
    """Which axis of (B, C, N) the kernels may take for contiguous: NODES, CHANNELS, or 0 for neither."""
    axis = NODES if field.stride(2) == 1 else CHANNELS if field.stride(1) == 1 else 0
    return int(getattr(axis, "value", axis))


def on_device(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
