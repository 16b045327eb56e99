"""A ψ that does not fit the registers of a program: up to 1,280 channels, and from 129 beside many classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton import split
from difnet_kernels.backends.triton.launch import Card
from difnet_kernels.backends.triton.rows import Launch
from difnet_kernels.backends.triton.walk import rows
from difnet_kernels.backends.triton.walk.plan import plan_walks
from difnet_kernels.problem import Problem
from tests.triton.interpreted.bounds import assert_as_plain_fp32, assert_right
from tests.triton.interpreted.cascade import biased, outlier, problem, rare_classes, run
from tests.triton.interpreted.plans import in_parts


@pytest.mark.parametrize(
    ("embed", "classes", "nodes"),
    [(257, 5, 35), (384, 3, 21), (768, 21, 37), (1280, 2, 17), (200, 64, 21), (256, 130, 17), (129, 127, 7)],
)
def test_every_output_and_gradient_is_right(embed: int, classes: int, nodes: int) -> None:
    p = problem(1, classes, nodes, (embed,))
    assert plan_walks("forward", p.psi, p.seed, p.precision, Card())[0].wide
    assert_right(p)


def test_beside_narrow_walks_with_a_bias_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "split_columns", in_parts(2))
    assert_right(biased(problem(2, 5, 35, (300, 3), state=True)))


def test_tiles_of_more_columns_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "select", lambda case: Launch(32, 64, 8, 2, in_registers=False))
    assert_right(problem(1, 5, 70, (300,)))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=["fp16", "bf16"])
def test_16_bits(dtype: torch.dtype) -> None:
    p = problem(1, 5, 21, (300,), size=2.0)
    p.seed, p.grad, p.psi = p.seed.to(dtype), p.grad.to(dtype), [p.psi[0].to(dtype)]
    assert_right(p)


def test_a_thousand_classes_are_eight_chunks() -> None:
    p = problem(1, 1000, 7, (16,))
    assert_right(p)


def test_an_outlier_of_many_channels() -> None:
    assert_as_plain_fp32(outlier(1e3, embed=300))


def test_rare_classes() -> None:
    assert_right(rare_classes(problem(1, 6, 21, (300,)), 1e-8))


def test_every_slice_counts() -> None:
    """Channels of zeros beside the others change no bit, wherever they stand."""
    p = problem(1, 3, 17, (256,))
    q = dataclasses.replace(p, psi=[torch.cat([torch.zeros(1, 256, 17), p.psi[0], torch.zeros(1, 64, 17)], dim=1)])
    r = dataclasses.replace(p, psi=[torch.cat([p.psi[0], torch.zeros(1, 320, 17)], dim=1)])
    first, second = run(q), run(r)
    assert torch.equal(first.states, second.states) and torch.equal(first.grad_seed, second.grad_seed)
    assert torch.equal(first.grad_psi[0][:, 256:512], second.grad_psi[0][:, :256])


def test_what_is_refused() -> None:
    fits = Problem(1, 21, 4096, (1280,), (torch.float32,) * 2, torch.device("cpu"), "high")
    assert triton_backend.refuses(fits) is None
    assert "D = 1281 is above 1280" in str(triton_backend.refuses(dataclasses.replace(fits, embeds=(64, 1281))))
    assert "32-bit" in str(triton_backend.refuses(dataclasses.replace(fits, nodes=2**31 // 1280 + 1)))
