"""What Triton's interpreter lacks, so that the library need not know that it is interpreted.

It reads and writes bf16 as the integers that hold its bits. While `installed`, every kernel gets fp32 copies of bf16
memory, which hold the same numbers; what it wrote is rounded to bf16 when it ends. So the products of bf16 operands are
right, and their sums are fp32's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter


def _memory(x: Tensor) -> Tensor:
    """All of the memory that x looks into, as one axis."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())


def _through_fp32(run: Callable[..., Any]) -> Callable[..., Any]:
    """A launch whose bf16 tensors are read and written through fp32 copies of their memory, strides and all."""

    def launch(self: Any, **arguments: Any) -> None:
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def fp32(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.dtype != torch.bfloat16:
                return x
            whole = _memory(x)
            _, copy = copies.setdefault(whole.data_ptr(), (whole, whole.float()))
            return copy.as_strided(x.shape, x.stride(), x.storage_offset())

        run(self, **{name: fp32(x) for name, x in arguments.items()})
        for whole, copy in copies.values():
            whole.copy_(copy)

    return launch


def install() -> None:
    """From now on, in this process."""
    executor = interpreter.GridExecutor
    if not hasattr(executor, "_without_bf16"):
        executor._without_bf16 = executor.__call__
        executor.__call__ = _through_fp32(executor.__call__)
