"""Denormal numbers: none reaches a product of the kernels, and whether the caller flushes them changes no bit."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.cases import DTYPES, Case, make
from tests.support.tolerances import HALF_ULP
from tests.support.truth import Result, assert_same, both, truth_of

# sticky flags of the processor, as fenv.h numbers them: a result was too small for a normal number
UNDERFLOW = {"x86_64": 0x10, "AMD64": 0x10, "aarch64": 0x08, "arm64": 0x08}.get(platform.machine())
# weights fade with the distance through the denormal numbers (maps, photo), stand far apart, or all matter
REGIMES = ("maps", "photo", "brightening", "clusters", "smooth")


@pytest.fixture
def flushing() -> Iterator[Callable[[bool], None]]:
    yield lambda flush: None if torch.set_flush_denormal(flush) else pytest.fail("this processor cannot flush")
    torch.set_flush_denormal(False)


def _underflows(call: Callable[[], object]) -> bool:
    """Whether a result of `call`, made by this thread, was denormal (or was flushed because it would have been)."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.feclearexcept(UNDERFLOW)
    call()
    return bool(libm.fetestexcept(UNDERFLOW))


def test_this_flag_can_rise() -> None:
    """The twin: a product that fades is seen, one that does not is not."""
    x = torch.full((64,), 1e-30)
    assert _underflows(lambda: x * x)
    assert not _underflows(lambda: x * 2)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("regime", REGIMES)
def test_no_result_is_denormal(native: str, threads: None, regime: str, biased: bool, dtype: str) -> None:
    """Weights that a row would not notice are exact zeros before exp, forward and backward: products with numbers that fade
    out cost some processors a hundred times what others do."""
    torch.set_num_threads(1)
    inputs = make(Case(2, (193,), 16, 5, 1, regime), DTYPES[dtype])
    assert UNDERFLOW is not None, f"the flags of {platform.machine()} are not known here"
    accumulate = torch.float64 if dtype == "fp64" else torch.float32
    state, psi = inputs.seed, inputs.psi[0]
    batch, classes, nodes = state.shape
    mu, beta = inputs.mu.to(accumulate), inputs.beta.to(accumulate)
    walked, row_lse = (torch.empty(shape, dtype=accumulate) for shape in ((batch, nodes, classes), (batch, nodes)))
    following, grad_psi = torch.empty_like(state), torch.empty_like(psi)
    before, total, of_mu, of_beta = (torch.zeros_like(x) for x in (walked, walked, mu, beta))
    grad = inputs.grad.to(state.dtype)
    ops = torch.ops.difnet_kernels
    bias = torch.linspace(-80, 20, nodes, dtype=accumulate).repeat(batch, 1) if biased else None
    of_lse, of_bias = (torch.ones_like(row_lse), torch.zeros_like(row_lse)) if biased else (None, None)
    fields = (state, state, psi, bias, mu, beta, 0)
    assert not _underflows(lambda: ops.walk_forward.default(*fields, following, walked, row_lse))
    results = (walked, row_lse, before, total, grad_psi, of_bias, of_mu, of_beta)
    assert not _underflows(lambda: ops.walk_backward.default(grad, of_lse, *fields, *results))


def _tiny(dtype: str) -> Iterator[tuple[str, object]]:
    """Scores, and gradients, of the size of the dtype's denormal numbers."""
    inputs = make(Case(2, (130,), 16, 5, 2, "smooth"), DTYPES[dtype])
    size = {"fp32": 1e-39, "bf16": 1e-39, "fp16": 4e-5, "fp64": 1e-310}[dtype]
    yield "seed", replace(inputs, seed=inputs.seed.double().abs().clamp(0.1, 1).mul(size).to(inputs.seed.dtype))
    yield "grad", replace(inputs, grad=inputs.grad.double().clamp(-1, 1).mul(size))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_the_mode_of_the_caller_changes_no_bit(
    kernel: str, threads: None, flushing: Callable[[bool], None], dtype: str
) -> None:
    """The mode belongs to a thread: a pool's threads keep what they had when they started. One walk, so that nothing is
    computed outside of the kernels."""
    torch.set_num_threads(2)
    for what, inputs in _tiny(dtype):
        inputs = replace(inputs, psi=inputs.psi[:1], mu=inputs.mu[:1], beta=inputs.beta[:1])  # type: ignore[type-var]
        first = _walked_back(inputs, kernel)
        for flush in (True, False):
            flushing(flush)
            for _ in range(25):
                assert_same(_walked_back(inputs, kernel), first)
        assert what in ("seed", "grad")


def _walked_back(inputs, kernel: str) -> list[Tensor]:  # type: ignore[no-untyped-def]
    result: Result = both(inputs, kernel)
    return [result.state, *result.grad_psi, result.grad_mu, result.grad_beta]


def test_fifty_calls_agree_after_one_thread_flushes(
    kernel: str, threads: None, flushing: Callable[[bool], None]
) -> None:
    """fp16 scores of 4e-5, which are subnormal halves, as probabilities of many classes are."""
    torch.set_num_threads(2)
    _, inputs = next(_tiny("fp16"))
    first = both(inputs, kernel).tensors()  # type: ignore[arg-type]
    flushing(True)
    for _ in range(50):
        assert_same(both(inputs, kernel).tensors(), first)  # type: ignore[arg-type]
    alone: list[list[Tensor]] = []
    caller = threading.Thread(target=lambda: alone.append(both(inputs, kernel).tensors()))  # type: ignore[arg-type]
    caller.start()
    caller.join()
    assert_same(alone[0], first)


def test_subnormal_halves_keep_their_value(kernel: str, flushing: Callable[[bool], None]) -> None:
    """Per class, in both modes: 4e-5 is no zero."""
    _, inputs = next(_tiny("fp16"))
    truth = truth_of(inputs).state  # type: ignore[arg-type]
    for flush in (False, True):
        flushing(flush)
        state = both(inputs, kernel).state  # type: ignore[arg-type]
        flushing(False)
        spacing = 2.0**-24  # of subnormal halves: what storing the result costs
        for ours, true in zip(state.unbind(1), truth.unbind(1), strict=True):
            error = (ours.double() - true).abs().max().item()
            assert error <= 2 * HALF_ULP[torch.float16] * true.abs().max().item() + spacing / 2


def test_the_caller_keeps_its_mode(kernel: str, flushing: Callable[[bool], None]) -> None:
    denormal = torch.tensor([1e-40])
    inputs = make(Case(1, (65,), 16, 5, 1, "smooth"))
    for flush in (True, False):
        flushing(flush)
        both(inputs, kernel)
        assert bool((denormal * 1).item() == 0) == flush
