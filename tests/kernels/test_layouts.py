"""Strides are read, never assumed: a strided input or gradient gives the bits of its contiguous copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk
from tests.support.cases import DTYPES, Case, Inputs, make
from tests.support.truth import assert_gradients, assert_same, both, forward, truth_of

CASE = Case(3, (6, 11), 18, 20, 2, "smooth")


def _inside(x: Tensor, *, batch: int = 0, channel: int = 0, row: int = 0, column: int = 0) -> Tensor:
    """x as a slice of a larger tensor of NaN: reading beyond the slice shows."""
    b, c, h, w = x.shape
    frame = x.new_full((b + 2 * batch, c + 2 * channel, h + 2 * row, w + 2 * column), torch.nan)
    view = frame[batch : batch + b, channel : channel + c, row : row + h, column : column + w]
    return view.copy_(x)


def _stepped(x: Tensor, axis: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] *= 2
    wide = x.new_full(shape, torch.nan)
    view = wide[tuple(slice(None, None, 2) if number == axis else slice(None) for number in range(x.dim()))]
    return view.copy_(x)


def _stored_as(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same tensor with its axes stored in another order."""
    back = tuple(order.index(axis) for axis in range(x.dim()))
    return x.permute(order).contiguous().permute(back)


def _unaligned(x: Tensor) -> Tensor:
    """One element off every vector boundary."""
    return x.new_full((x.numel() + 1,), torch.nan)[1:].view(x.shape).copy_(x)


def _overlapping(x: Tensor) -> Tensor:
    """Each row of the grid starts one element after the one before: most elements have several indices."""
    b, c, h, w = x.shape
    return x.flatten(2)[..., : h + w - 1].contiguous().as_strided((b, c, h, w), (c * (h + w - 1), h + w - 1, 1, 1))


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_slice": lambda x: _inside(x, channel=2).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    "batch_slice": lambda x: _inside(x, batch=1),
    "channel_slice": lambda x: _inside(x, channel=3),
    "crop": lambda x: _inside(x, row=2, column=1),
    "every_other_image": lambda x: _stepped(x, 0),
    "every_other_channel": lambda x: _stepped(x, 1),
    "every_other_column": lambda x: _stepped(x, 3),
    "rows_and_columns_swapped": lambda x: _stored_as(x, (0, 1, 3, 2)),
    "channels_outermost": lambda x: _stored_as(x, (1, 0, 2, 3)),
    "unaligned": _unaligned,
    "one_image_expanded": lambda x: x[:1].expand_as(x),
    "one_channel_expanded": lambda x: x[:, :1].expand_as(x),
    "one_pixel_expanded": lambda x: x[..., :1, :1].expand_as(x),
    "overlapping": _overlapping,
}


def _with(inputs: Inputs, role: str, change: Callable[[Tensor], Tensor]) -> Inputs:
    everywhere = role == "all"
    return replace(
        inputs,
        seed=change(inputs.seed) if everywhere or role == "seed" else inputs.seed,
        psi=[change(p) for p in inputs.psi] if everywhere or role == "psi" else inputs.psi,
        grad=change(inputs.grad) if everywhere or role == "grad" else inputs.grad,
    )


def _copy(inputs: Inputs) -> Inputs:
    def plain(x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    return replace(inputs, seed=plain(inputs.seed), psi=[plain(p) for p in inputs.psi], grad=plain(inputs.grad))


@pytest.mark.parametrize("role", ["seed", "psi", "grad", "all"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strided_is_right(backend: str, pattern: str, role: str) -> None:
    """Also where the backend makes no promise about bits; the truth gets contiguous copies, so the reference
    shares no handling of strides with it."""
    inputs = _with(make(CASE), role, PATTERNS[pattern])
    assert_gradients(both(inputs, backend), inputs, truth_of(_copy(inputs)))


@pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.smoke), "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strided_equals_contiguous_bit_for_bit(kernel: str, pattern: str, dtype: str) -> None:
    before, expected = None, None
    for role in ("seed", "psi", "grad", "all"):
        inputs = _with(make(CASE, DTYPES[dtype]), role, PATTERNS[pattern])
        plain = _copy(inputs)
        numbers = [plain.seed, *plain.psi, plain.grad]
        if before is None or not all(map(torch.equal, numbers, before)):  # most patterns leave the numbers as they are
            before, expected = numbers, both(plain, kernel).tensors()
        assert_same(both(inputs, kernel).tensors(), expected)


@pytest.mark.smoke
@pytest.mark.parametrize("grid", [(7,), (6, 11), (3, 4, 5)], ids=str)
def test_the_result_and_its_gradients_keep_the_memory_format(backend: str, grid: tuple[int, ...]) -> None:
    """Channels-last in, channels-last out, for every input on its own."""
    inputs = make(Case(2, grid, 8, 5, 2, "smooth"))

    def nodes_first(x: Tensor) -> Tensor:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)

    for seed_last in (False, True):
        for psi_last in (False, True):
            seed = nodes_first(inputs.seed) if seed_last else inputs.seed
            psi = [nodes_first(p) if psi_last else p for p in inputs.psi]
            result = both(replace(inputs, seed=seed, psi=psi), backend)
            assert result.state.stride() == seed.stride()
            assert result.grad_seed.stride() == seed.stride()
            assert all(g.stride() == p.stride() for g, p in zip(result.grad_psi, psi, strict=True))


def test_every_step_keeps_the_memory_format(backend: str) -> None:
    inputs = make(CASE)
    seed = inputs.seed.contiguous(memory_format=torch.channels_last)
    steps = cascaded_random_walk(seed, inputs.psi, inputs.mu, inputs.beta, backend=backend, return_steps=True)
    assert all(step.is_contiguous(memory_format=torch.channels_last) for step in steps)


@pytest.mark.smoke
def test_the_stride_zero_gradient_of_a_sum(backend: str) -> None:
    """`.sum().backward()` hands down one number expanded over everything."""
    inputs = make(CASE)
    ones = replace(inputs, grad=torch.ones(1).expand_as(inputs.seed))
    leaves = [x.clone().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    y = cascaded_random_walk(seed, psi, mu, beta, backend=backend)
    y.sum().backward()
    truth = truth_of(_copy(ones))
    result = replace(
        truth, grad_seed=leaves[0].grad, grad_psi=[p.grad for p in psi], grad_mu=mu.grad, grad_beta=beta.grad
    )
    assert_gradients(result, ones, truth)


@pytest.mark.parametrize("layout", ["one_tensor", "one_tensor_walks_inside", "the_same_tensor_twice"])
def test_psi_as_one_tensor_or_repeated(backend: str, layout: str) -> None:
    """psi (T, B, D, *S) equals the sequence of its parts, whatever its strides; a repeated one gets both gradients."""
    inputs = make(CASE)
    if layout == "the_same_tensor_twice":
        shared = inputs.psi[0].clone().requires_grad_()
        y = cascaded_random_walk(inputs.seed, [shared, shared], inputs.mu, inputs.beta, backend=backend)
        (gradient,) = torch.autograd.grad(y, shared, inputs.grad)
        apart = both(replace(inputs, psi=[inputs.psi[0]] * 2), backend).grad_psi
        assert torch.equal(gradient, apart[0] + apart[1])
        return
    axis = 0 if layout == "one_tensor" else 2
    stacked = torch.stack(inputs.psi, axis).movedim(axis, 0).detach().requires_grad_()
    y = cascaded_random_walk(inputs.seed, stacked, inputs.mu, inputs.beta, backend=backend)
    (gradient,) = torch.autograd.grad(y, stacked, inputs.grad)
    views = both(replace(inputs, psi=list(stacked.detach().unbind(0))), backend)
    assert torch.equal(y, views.state)
    assert_same(list(gradient.unbind(0)), views.grad_psi)


@pytest.mark.parametrize(
    "pattern", ["channels_last", "crop", "every_other_column", "one_channel_expanded", "unaligned"]
)
def test_inputs_are_left_alone(backend: str, pattern: str) -> None:
    """Neither the inputs nor the memory around them change, forward and backward."""
    inputs = _with(make(CASE), "all", PATTERNS[pattern])
    held = [inputs.seed, *inputs.psi, inputs.mu, inputs.beta, inputs.grad]
    storages = [x.new_empty(0).set_(x.untyped_storage()) for x in held]
    before = [x.clone() for x in storages]
    both(inputs, backend)
    forward(inputs, backend)
    for now, then in zip(storages, before, strict=True):
        assert torch.equal(now.nan_to_num(9e9), then.nan_to_num(9e9))
