"""What Triton's interpreter lacks, so that the library need not know that it is interpreted.

It reads and writes bf16 as the integers that hold its bits. While `installed`, every kernel gets fp32 copies of bf16
memory, which hold the same numbers; what it wrote is rounded to bf16 when it ends. So the products of bf16 operands are
right, and their sums are fp32's.

It also turns triton.language into its own functions again at every call of a device function, which was half of the time
of these tests. Here that happens once for each launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
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
            if isinstance(x, tuple):
                return tuple(fp32(one) for one in x)
            if not isinstance(x, Tensor) or x.dtype != torch.bfloat16:
                return x
            whole = _memory(x)
            _, copy = copies.setdefault(whole.data_ptr(), (whole, whole.float()))
            return copy.as_strided(x.shape, x.stride(), x.storage_offset())

        run(self, **{name: fp32(x) for name, x in arguments.items()})
        for whole, copy in copies.values():
            whole.copy_(copy)

    return launch


_patched: set[Any] = set()  # the modules of triton.language that the running launch has turned already


@cache
def _languages(function: Callable[..., Any]) -> frozenset[Any]:
    names = ("triton.language", "triton.language.core")
    return frozenset(x for x in function.__globals__.values() if inspect.ismodule(x) and x.__name__ in names)


def _once_per_launch(patch: Callable[..., Any]) -> Callable[..., Any]:
    def patched(function: Callable[..., Any]) -> Any:
        if _languages(function) <= _patched:
            return interpreter._LangPatchScope()  # nothing to undo
        _patched.update(_languages(function))
        return patch(function)

    return patched


def _kept_by_name(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The numpy type of a scalar or a block; Triton's function makes a table of all types at every call."""
    known: dict[str, Any] = {}

    def kept(type: Any) -> Any:
        name = type.scalar.name
        if name not in known:
            known[name] = numpy_type(type)
        return known[name]

    return kept


def _begins_anew(run: Callable[..., Any]) -> Callable[..., Any]:
    def launch(self: Any, *given: Any, **arguments: Any) -> None:
        _patched.clear()
        try:
            run(self, *given, **arguments)
        finally:
            _patched.clear()

    return launch


def install() -> None:
    """From now on, in this process."""
    executor = interpreter.GridExecutor
    if not hasattr(executor, "_without_bf16"):
        executor._without_bf16 = executor.__call__
        executor.__call__ = _through_fp32(_begins_anew(executor.__call__))
        interpreter._patch_lang = _once_per_launch(interpreter._patch_lang)
        interpreter._get_np_dtype = _kept_by_name(interpreter._get_np_dtype)
