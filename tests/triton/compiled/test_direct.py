"""Kernels that are kept: under a driver that starts nothing, what is started directly is what Triton would have started."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton import direct, launch
from difnet_kernels.backends.triton.projection import host as projection
from difnet_kernels.backends.triton.walk import host, host_backward, prepare, state
from tests.triton.compiled.compile_only import CompileOnlyDriver

Started = tuple[int, tuple[Any, ...]]  # programs and arguments, tensors as addresses


class Idle(CompileOnlyDriver):
    """A card that loads binaries and starts nothing; `seen` is what it was asked to start."""

    def __init__(self) -> None:
        super().__init__(90)
        self.seen: list[Started] | None = None
        self.count = 0
        self.utils = self

    def get_current_device(self) -> int:
        return -1  # no other test's

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def load_binary(self, *given: Any) -> tuple[int, ...]:
        return 1, 2, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(x: int, y: int, z: int, stream: int, function: int, packed: Any, *given: Any) -> None:
            self.count += 1
            if self.seen is not None:
                self.seen.append((x, tuple(_address(value) for value in given[3:])))

        return start


def _address(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_address, x))
    return x.data_ptr() if isinstance(x, Tensor) else x


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Idle]:
    card = Idle()
    before = driver._active
    driver.set_active(card)
    for module in (host, host_backward, projection):
        monkeypatch.setattr(module, "card_of", lambda device: launch.Card(90, 132))
    kept: list[direct.Direct] = []
    keep = direct.Direct.keep
    monkeypatch.setattr(direct.Direct, "keep", lambda self, *given: (kept.append(self), keep(self, *given))[1])
    yield card
    driver._active = before
    for one in kept:
        one.kept.clear()


class Cascade:
    """Two walks forward and backward, a bias and lse beside them; of the paper's sizes, whose binaries the other files compile,
    too."""

    def __init__(self, dtype: torch.dtype = torch.float32, walks: int = 2, bias: bool = True):
        B, D, K, N = 1, 64, 21, 200
        self.seed, self.psi = torch.zeros(B, K, N, dtype=dtype), [torch.zeros(B, D, N, dtype=dtype)] * walks
        self.gates, self.walked, self.row_lse = (
            torch.zeros(walks),
            torch.zeros(walks, B, N, K),
            torch.zeros(walks, B, N),
        )
        self.lse = [torch.zeros(B, N) for _ in range(walks)] if bias else []

    def __call__(self) -> None:
        y, x, gates, lse = self.seed, self.psi, self.gates, self.lse
        saved = dict(walked=self.walked, row_lse=self.row_lse)
        triton_backend.cascade_forward(None, y, x, gates, gates, "high", states=[y], bias=lse, lse=lse, **saved)
        grads = dict(grad_state=None, grad_seed=y, grad_psi=x, grad_mu=gates, grad_beta=gates)
        grads |= dict(bias=lse, grad_lse=lse, grad_bias=lse)
        triton_backend.cascade_backward([y], None, y, x, gates, gates, *saved.values(), "high", **grads)


def project() -> None:
    """Ψ of an image in colour, forward and backward."""
    for channels in (3, 256):
        f, weight, slope = torch.zeros(1, channels, 1, 13, 13), torch.zeros(64, channels), torch.zeros(64)
        peak = torch.zeros(1, 1, 7, 7, 64).permute(0, 4, 1, 2, 3)
        position = torch.zeros(1, 1, 7, 7, 64, dtype=torch.int32).permute(0, 4, 1, 2, 3)
        given = dict(peak=peak, position=position, mean=slope, variance=slope)
        triton_backend.projection_forward(f, weight, slope, **given)
        grads = dict(grad_features=f, grad_weight=weight)
        triton_backend.projection_backward(peak, slope, slope, f, weight, position, slope, **grads)


def recorded(card: Idle, call: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Started], int]:
    """What one call starts, and in how many launches Triton looked at the arguments; all buffers lie at one address."""
    looked: list[int] = []
    run = triton.JITFunction.run
    card.seen = []
    with monkeypatch.context() as patch:
        patch.setattr(triton.JITFunction, "run", lambda self, *a, **k: (looked.append(1), run(self, *a, **k))[1])
        call()
    return card.seen, len(looked)


def same_but_for_buffers(first: list[Started], second: list[Started]) -> bool:
    """The programs and all numbers; addresses of buffers that torch allocated anew may differ."""

    def numbers(started: Started) -> tuple[Any, ...]:
        flat = [y for x in started[1] for y in (x if isinstance(x, tuple) else (x,))]
        return (started[0], *("address" if isinstance(x, int) and x > 2**32 else x for x in flat))

    return list(map(numbers, first)) == list(map(numbers, second))


@pytest.mark.parametrize(
    "call", [Cascade(), Cascade(torch.bfloat16, bias=False), project], ids=["fp32", "bf16", "projection"]
)
def test_what_was_launched_once_is_started_directly(idle: Idle, monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    first, looked = recorded(idle, call, monkeypatch)
    assert looked > 4
    second, looked = recorded(idle, call, monkeypatch)
    assert looked == 0 and same_but_for_buffers(first, second)


@launch.kernel
def mixed_kernel(x_ptr, given_y_ptr, N, x_b: tl.int64, R: tl.constexpr, PDL: tl.constexpr):
    """A sum of two numbers of any dtype."""
    tl.store(x_ptr + x_b, tl.load(given_y_ptr + N) + R)


def mixed(x: Tensor, y: Tensor, R: int = 1, **row: Any) -> None:
    launch.launch("mixed", mixed_kernel, 3, dict(x_ptr=x, given_y_ptr=y, N=7, x_b=2**40, R=R), **row)


def test_what_compiles_anew_is_told_apart(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    half, inside = torch.zeros(8, dtype=torch.float16), torch.zeros(9)[1:]
    for ours in (lambda: mixed(x, y), lambda: mixed(x, half), lambda: mixed(half, y), lambda: mixed(x, y, R=2)):
        assert recorded(idle, ours, monkeypatch)[1] == 1
    assert recorded(idle, lambda: mixed(x, y, warps=8), monkeypatch)[1] == 1
    started, looked = recorded(idle, lambda: mixed(x, inside), monkeypatch)
    assert looked == 0 and started == [(3, (x.data_ptr(), inside.data_ptr(), 7, 2**40, 1, True))]
    for _ in range(2):  # an address that loads of 16 bytes may not read is Triton's to decide
        assert recorded(idle, lambda: mixed(inside, y), monkeypatch)[1] == 1


def test_a_dtype_that_the_others_follow_from_stands_for_them(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    mixed(x, y, of=torch.float16)
    assert recorded(idle, lambda: mixed(x, y, of=torch.float16), monkeypatch)[1] == 0
    assert recorded(idle, lambda: mixed(x, y, of=torch.bfloat16), monkeypatch)[1] == 1


def test_another_version_of_triton_launches_by_itself(
    idle: Idle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    monkeypatch.setattr(direct.triton, "__version__", "3.10.0+gitabc")
    direct.known.cache_clear()
    with caplog.at_level(logging.DEBUG, "difnet_kernels"):
        for _ in range(3):
            assert recorded(idle, lambda: mixed(x, y), monkeypatch)[1] == 1
    assert [r.getMessage() for r in caplog.records if "3.10.0" in r.getMessage()] == [
        "Triton 3.10.0+gitabc is not among those whose binaries are started directly: every launch is its own"
    ]


def test_a_profiler_sees_every_launch(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    mixed(x, y)
    seen: list[Any] = []
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        assert recorded(idle, lambda: mixed(x, y), monkeypatch)[1] == 1
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    assert recorded(idle, lambda: mixed(x, y), monkeypatch)[1] == 0


def test_a_kernel_declares_its_parameters_in_order() -> None:
    def wrong(N, x_ptr): ...

    with pytest.raises(AssertionError, match="tensors, sizes, other numbers, constants"):
        launch.kernel(wrong)


def test_a_failed_start_names_launch_row_and_case(idle: Idle) -> None:
    x, y = torch.zeros(8), torch.zeros(8)

    def refuse(*given: Any) -> None:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    key = mixed_kernel.direct.started(-1, dict(x_ptr=x, given_y_ptr=y, N=7, x_b=0, R=1, PDL=True), 3, 4, 2, None)
    mixed_kernel.direct.kept[key] = refuse, 1, ()
    with pytest.raises(RuntimeError, match=r"(?s)illegal memory.*4 warps, 2 stages.*N=7.*CUDA_LAUNCH_BLOCKING"):
        mixed(x, y)
    mixed_kernel.direct.kept.clear()


def test_a_launch_is_far_shorter_than_one_of_tritons_own(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time of one thread, up to the driver, in the mean over five walks in both directions: on a Zen 4 6 µs, and
    30 of Triton's own. Both are taken in turn, so that a busy machine slows both."""
    call, calls = Cascade(torch.bfloat16, walks=5, bias=False), list[tuple[Any, Any]]()
    real = launch.launch

    def noted(*given: Any, **options: Any) -> None:
        calls.append((given, options))
        real(*given, **options)

    call()
    with monkeypatch.context() as patch:
        for module in (prepare, state, host, host_backward):
            patch.setattr(module, "launch", noted)
        call()
    assert len(calls) == 23

    def seconds(own: bool) -> float:
        with monkeypatch.context() as patch:
            if own:
                patch.setattr(direct.Direct, "started", lambda self, *given: ())
            begin = time.thread_time()
            for given, options in calls:
                real(*given, **options)
            return (time.thread_time() - begin) / len(calls)

    ours, own = (min(taken) for taken in zip(*((seconds(False), seconds(True)) for _ in range(30)), strict=True))
    assert ours < 0.7 * own, f"{ours * 1e6:.1f} µs, Triton's own {own * 1e6:.1f}"
