"""The single walk in the matrix of dtypes and layouts: the state decides what comes out, the widest field how sums run."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from difnet_kernels import random_walk
from tests.support.cases import DTYPES, normal
from tests.support.tolerances import FLOOR, HALF_ULP, SIXTEEN_BIT, assert_within

B, K, D, GRID = 2, 3, 6, (5, 7)


def _fields(state: str, psi: str, seed: str) -> list[Tensor]:
    widths = (("state", K, state), ("psi", D, psi), ("seed", K, seed))
    return [normal(n, B, c, *GRID, dtype=torch.float64).to(DTYPES[dtype]) for n, (_, c, dtype) in enumerate(widths)]


def _true(state: Tensor, psi: Tensor, seed: Tensor, mu: float, beta: float) -> Tensor:
    """Written out in fp64, because a truth that called the reference would share its mistakes."""
    y, p, s = (x.double().flatten(2) for x in (state, psi, seed))
    P = torch.softmax(p.mT @ p, dim=-1)
    return (beta * (mu * y @ P.mT + (1 - mu) * s) + (1 - beta) * y).reshape(state.shape)


@pytest.mark.smoke
@pytest.mark.parametrize(("dtype", "psi_dtype", "seed_dtype"), list(product(DTYPES, repeat=3)))
def test_a_state_of_any_dtype_walks_with_fields_of_any_other(
    backend: str, dtype: str, psi_dtype: str, seed_dtype: str
) -> None:
    state, psi, seed = _fields(dtype, psi_dtype, seed_dtype)
    leaves = [x.requires_grad_() for x in (state, psi, seed)]
    y = random_walk(*leaves, 0.7, 0.6, backend=backend)
    assert y.dtype == DTYPES[dtype]
    grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]
    dtypes = {x.dtype for x in leaves}
    accumulate = torch.float64 if torch.float64 in dtypes else torch.float32
    rounded = max((SIXTEEN_BIT[x] for x in dtypes if x in SIXTEEN_BIT and accumulate == torch.float32), default=0.0)
    # sums and products run in the widest dtype; only storing the result may be coarser
    bound = FLOOR[accumulate] + 4 * HALF_ULP[accumulate] * psi.detach().double().square().sum(1).max().item() + rounded
    assert_within("state", y.detach(), _true(*[x.detach() for x in leaves], 0.7, 0.6), bound)


def test_a_wide_seed_is_not_cast_to_a_narrow_state(backend: str) -> None:
    """1e5 is no fp16 number: cast, it is infinite, and with μ = 1 the walk multiplies it by zero."""
    state, psi = torch.zeros(1, 2, 9, dtype=torch.float16), normal(1, 1, 4, 9)
    y = random_walk(state, psi, torch.full((1, 2, 9), 1e5), 1.0, 1.0, backend=backend)
    assert torch.equal(y, torch.zeros_like(state))


@pytest.mark.needs(dtype="fp64")
def test_an_fp64_seed_is_summed_in_fp64(backend: str) -> None:
    state, psi, seed = (x.float() for x in _fields("fp64", "fp64", "fp64"))
    wide = seed.double() * (1 + 2.0**-40)
    leaf = wide.clone().requires_grad_()
    y = random_walk(state, psi, leaf, 0.25, 1.0, backend=backend)
    (grad,) = torch.autograd.grad(y.double().sum(), leaf)
    torch.testing.assert_close(grad, torch.full_like(grad, 0.75), rtol=1e-15, atol=0)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.smoke
@pytest.mark.parametrize("seed_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_format_is_that_of_the_state(backend: str, layout: str, seed_layout: str) -> None:
    plain = _fields("fp32", "fp32", "fp32")
    state, psi, seed = LAYOUTS[layout](plain[0]), plain[1], LAYOUTS[seed_layout](plain[2])
    y = random_walk(state, psi, seed, 0.7, 0.6, backend=backend)
    last = layout == "channels_last"
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    dense = random_walk(state.contiguous(), psi, seed.contiguous(), 0.7, 0.6, backend=backend)
    assert_within("state", y, dense.double(), FLOOR[torch.float32])
