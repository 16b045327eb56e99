"""Autograd of an operator whose arguments hold lists of tensors, without the detour through trees of Python objects.

`torch.library.register_autograd` does the same for any signature: it flattens the arguments and results of every call, and
builds them up again, as general trees. That took a sixth of the time of a small call with gradients. It also drops a tangent
of forward mode without a word where no input requires a gradient; here that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad
from torch.library import Library

Nested = Any  # a tensor, a list or tuple of tensors, or what autograd passes by


def _flattened(values: Sequence[Nested]) -> tuple[list[Any], list[int]]:
    """The values with lists of tensors laid out in their place, and the length of each; -1 where there was no list."""
    flat: list[Any] = []
    lengths: list[int] = []
    for value in values:
        if isinstance(value, (list, tuple)) and all(x is None or isinstance(x, Tensor) for x in value):
            flat += value
            lengths.append(len(value))
        else:
            flat.append(value)
            lengths.append(-1)
    return flat, lengths


def _nested(flat: Sequence[Any], lengths: Sequence[int]) -> list[Nested]:
    values: list[Nested] = []
    at = 0
    for length in lengths:
        values.append(flat[at] if length < 0 else list(flat[at : at + length]))
        at += 1 if length < 0 else length
    return values


def _refuse_forward_mode(name: str, arguments: Sequence[Nested]) -> None:
    """A tangent would be lost below autograd, and the derivative be zero. Outside of forward mode one comparison."""
    if forward_ad._current_level < 0:
        return
    flat, _ = _flattened(arguments)
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in flat):
        raise NotImplementedError(
            f"{name} has derivatives in reverse mode alone; got an input with a tangent of forward mode (torch.func.jvp, "
            "torch.autograd.forward_ad). Use torch.autograd.grad; for small grids, walk and closed_form of "
            "difnet_kernels.backends.reference are plain torch and have both."
        )


def register(
    library: Library, name: str, backward: Callable[..., Any], save: Callable[..., None] | None = None
) -> None:
    """Give `difnet_kernels::name` a derivative: `backward(ctx, *grads)` and `save(ctx, inputs, output)` are those of
    `torch.library.register_autograd`, inputs being all arguments of the schema. `ctx.needed` has the form of the inputs."""
    operator = getattr(torch.ops.difnet_kernels, name).default
    defaults = [argument.default_value for argument in operator._schema.arguments]
    alone = [str(result.type) for result in operator._schema.returns] == ["Tensor"]

    def below(keys: Any, inputs: Sequence[Nested]) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & _C._after_autograd_keyset, *inputs)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, taken: list[int], given: list[int], *flat: Any) -> Any:
            inputs = _nested(flat, taken)
            output = below(keys, inputs)
            if save is not None:
                save(ctx, inputs, output)
            results, given[:] = _flattened([output] if alone else output)
            ctx.taken, ctx.given = taken, given
            return tuple(results)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            ctx.needed = _nested(ctx.needs_input_grad[3:], ctx.taken)
            found: list[Any] = [None, None, None]
            for grad, length in zip(backward(ctx, *_nested(grads, ctx.given)), ctx.taken, strict=True):
                found += [grad] if length < 0 else grad or [None] * length
            return tuple(found)

    def kernel(keys: Any, *arguments: Nested) -> Any:
        _refuse_forward_mode(name, arguments)
        if not (torch.is_grad_enabled() and _C._any_requires_grad(*arguments)):
            return below(keys, arguments)
        flat, taken = _flattened([*arguments, *defaults[len(arguments) :]])
        given: list[int] = []
        results = _nested(Node.apply(keys, taken, given, *flat), given)
        return results[0] if alone else tuple(results)

    library.impl(name, kernel, "Autograd", with_keyset=True)
