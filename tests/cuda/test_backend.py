"""The backend around the kernels: what it refuses, that it waits to be named, and that its sizes are those of the kernels."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import BACKENDS, BackendUnavailable, choose, cuda
from difnet_kernels.modules import projected
from difnet_kernels.problem import Problem, Projection
from tests.conftest import _taken
from tests.cuda import host_backend, projection_twin, twin
from tests.support.cases import Case
from tests.support.projections import Shape

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CUDA = torch.device("cuda")
WALK = replace(Problem.of(torch.zeros(2, 5, 30), [torch.zeros(2, 16, 30)], "high", gradients=False), device=CUDA)

PROJECTION = replace(Projection.of(torch.zeros(2, 64, 1, 9, 9), torch.zeros(64, 64), (1, 5, 5)), device=CUDA)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were an sm_90 card, on which both GPU backends run."""
    monkeypatch.setattr(cuda, "_arch", lambda device: 90)
    for name in ("cuda", "triton"):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], unusable=lambda: None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embeds": (16, 129)}, "D = 129 is above 128; use backend='triton'"),
        ({"classes": 64}, "K = 64 is above 63; use backend='triton'"),
        ({"dtypes": (torch.float64, torch.float32)}, "use float32, or backend='reference'"),
        ({"device": torch.device("cpu")}, "the tensors are on cpu; move them to a CUDA device"),
    ],
)
@pytest.mark.usefixtures("card")
def test_what_is_refused_names_the_remedy(change: dict[str, object], words: str) -> None:
    with pytest.raises(BackendUnavailable) as raised:
        choose("cuda", replace(WALK, **change))  # type: ignore[arg-type]
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed": 129}, "D = 129 is above 128; use backend='triton'"),
        ({"channels": 2049}, "C = 2049 is above 2048; use backend='triton'"),
        ({"dtypes": (torch.float32, torch.float64)}, "use float32, or backend='reference'"),
        ({"device": torch.device("cpu")}, "the tensors are on cpu; move them to a CUDA device"),
    ],
)
@pytest.mark.usefixtures("card")
def test_what_is_refused_of_a_projection_names_the_remedy(change: dict[str, object], words: str) -> None:
    with pytest.raises(BackendUnavailable) as raised:
        choose("cuda", replace(PROJECTION, **change))  # type: ignore[arg-type]
    assert words in str(raised.value)
    assert choose("cuda", PROJECTION).name == "cuda"
    assert choose("", PROJECTION).name == "triton"


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize(("images", "channels", "size"), [(1, 3, (1, 1, 1)), (3, 70, (2, 9, 31)), (1, 33, (1, 40, 50))])
def test_the_counters_of_a_projection_suffice(
    monkeypatch: pytest.MonkeyPatch, images: int, channels: int, size: tuple[int, int, int], missing: int
) -> None:
    """Of the narrow tiles, which are the most, exactly: one fewer is refused before anything runs."""
    features, weight = torch.zeros(images, channels, *size), torch.zeros(100, channels)
    peak = torch.zeros(images, 100, *size)
    given = {"peak": peak, "position": peak.int(), "mean": torch.zeros(100), "variance": torch.zeros(100)}
    for name in ("projection_counters_size", "projection_backward_counters_size"):
        monkeypatch.setattr(projection_twin, name, partial(_fewer, getattr(cuda, name), missing))
    refused = pytest.raises(twin.TwinError, match="the counters do not suffice") if missing else nullcontext()
    with refused:
        projection_twin.projection_forward(features, weight, None, **given)
    with refused:
        projection_twin.projection_backward(
            peak, None, None, features, weight, given["position"], None, grad_features=None, grad_weight=weight.clone()
        )


def _fewer(size: Callable[..., int], missing: int, *arguments: object) -> int:
    return size(*arguments) - missing


def test_an_old_card_is_refused(monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    monkeypatch.setattr(cuda, "_arch", lambda device: 75)
    with pytest.raises(BackendUnavailable, match="sm_75; the kernels need sm_80"):
        choose("cuda", WALK)


@pytest.mark.usefixtures("card")
def test_it_waits_to_be_named() -> None:
    assert choose("cuda", WALK).name == "cuda"
    assert choose("", WALK).name == "triton"
    assert "no committed results" in (cuda.not_preferred(WALK) or "")


@pytest.mark.usefixtures("card")
def test_where_results_show_it_faster_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "PREFERRED_ON", frozenset({90}))
    assert choose("", WALK).name == "cuda"
    assert choose("", replace(WALK, gradients=True)).name == "cuda"


def test_no_architecture_is_preferred_without_results() -> None:
    for arch in cuda.PREFERRED_ON:
        assert (RESULTS / f"cuda_sm{arch}.json").exists()


def _never(*arguments: object, **results: object) -> None:
    raise AssertionError("another backend was reached")


@pytest.mark.parametrize("forward", ["cuda", "reference"])
def test_what_forward_leaves_is_read_by_its_own_backward_alone(monkeypatch: pytest.MonkeyPatch, forward: str) -> None:
    """Both keep w and lse in the same shapes, and row_lse in units of their own: no shape tells whose they are. Where
    the backend that ran forward is gone, backward raises."""
    monkeypatch.setitem(BACKENDS, "cuda", replace(host_backend.BACKEND, name="cuda"))
    seed, psi = torch.randn(2, 3, 30), torch.randn(2, 6, 30, requires_grad=True)
    given = (seed, [psi], torch.tensor([0.5]), torch.tensor([0.75]))
    y, exact = (cascaded_random_walk(*given, backend=name) for name in (forward, "reference"))
    (truth,) = torch.autograd.grad(exact.square().sum(), psi)
    for name in BACKENDS:
        if name != forward:
            monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], cascade_backward=_never))
    (ours,) = torch.autograd.grad(y.square().sum(), psi, retain_graph=True)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item())
    monkeypatch.setitem(BACKENDS, forward, replace(BACKENDS[forward], unusable=lambda: "its driver is gone"))
    with pytest.raises(BackendUnavailable, match=f"{forward}: its driver is gone"):
        torch.autograd.grad(y.square().sum(), psi)


@pytest.mark.parametrize(("forward", "backward"), [("cuda", "reference"), ("reference", "cuda")])
def test_by_hand_backward_refuses_what_another_backend_left(
    monkeypatch: pytest.MonkeyPatch, forward: str, backward: str
) -> None:
    """The operators called directly: `row_lse` carries the name of its backend until somebody copies it."""
    monkeypatch.setitem(BACKENDS, "cuda", replace(host_backend.BACKEND, name="cuda"))
    ops, gates = torch.ops.difnet_kernels, torch.tensor([0.5])
    seed, psi = torch.randn(2, 3, 30), torch.randn(2, 6, 30, requires_grad=True)
    given = (None, seed, [psi])
    _, walked, row_lse, _ = ops.cascade_forward(*given, gates, gates, "high", forward, False, True)

    def back(name: str) -> list[torch.Tensor]:
        rest = (gates, gates, walked, row_lse, "high", name, [False, False, True, False, False])
        grad_psi: list[torch.Tensor] = ops.cascade_backward([seed], [], *given, [], *rest)[2]
        return grad_psi

    with pytest.raises(ValueError, match=f"got those of '{forward}' for '{backward}'. Pass backend='{forward}'"):
        back(backward)
    assert back(forward)[0].shape == psi.shape


@pytest.mark.parametrize(
    ("problem", "made"),
    [
        (Case(1, (9,), 128, 63, 2), True),
        (Case(1, (9,), 129, 5, 2), False),
        (Case(1, (9,), 8, 64, 2), False),
        (Shape(1, 2048, 128, (9,), (3,)), True),
        (Shape(1, 2049, 8, (9,), (3,)), False),
    ],
    ids=str,
)
def test_on_a_card_no_test_is_made_of_what_it_refuses(problem: Case | Shape, made: bool) -> None:
    item: Any = SimpleNamespace(
        callspec=SimpleNamespace(params={"backend": "cuda", "dtype": "fp32", "problem": problem}),
        iter_markers=lambda name: (),
    )
    assert _taken(item) == made


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch's current stream on a card, on which no counters were made."""
    stream = SimpleNamespace(cuda_stream=5, device=torch.device("cpu"), capturing=False)
    monkeypatch.setattr(cuda, "_counters", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return stream


def test_a_stream_keeps_its_counters_and_a_graph_has_its_own(stream: SimpleNamespace) -> None:
    first = cuda._counters_for(stream.device, 10)
    assert cuda._counters_for(stream.device, 4096) is first
    stream.cuda_stream = 6
    other = cuda._counters_for(stream.device, 10)
    assert other is not first
    larger = cuda._counters_for(stream.device, 5000)
    assert larger.numel() == 5000 and cuda._counters_for(stream.device, 10) is larger
    stream.capturing = True
    captured = [cuda._counters_for(stream.device, 10) for _ in range(2)]
    assert len({x.data_ptr() for x in (*captured, larger)}) == 3 and not torch.stack(captured).any()


def test_counters_that_are_kept_come_from_no_pool_that_is_lent(
    monkeypatch: pytest.MonkeyPatch, stream: SimpleNamespace
) -> None:
    """A compiler that will capture a graph (mode="reduce-overhead") warms up with the graph's pool for all that the thread
    allocates, and raises over what is still alive then, or gives its memory to others. Modes belong to a thread, too."""
    zeros, lent = torch.zeros, threading.local()
    lent.pool = "of a graph"
    pools = []

    def allocate(*arguments: Any, **options: Any) -> torch.Tensor:
        pools.append(getattr(lent, "pool", "of all"))
        return zeros(*arguments, **options)

    monkeypatch.setattr(torch, "zeros", allocate)
    with torch.inference_mode():
        kept = cuda._counters_for(stream.device, 10)
    assert pools == ["of all"] and not kept.is_inference()


def test_a_module_on_the_cpu_starts_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting it takes time and memory, and then no forked process can use a card."""

    def started() -> str:
        raise AssertionError("the driver was started")

    monkeypatch.setitem(BACKENDS, "cuda", replace(BACKENDS["cuda"], unusable=started))
    assert projected.backend_for(None, torch.device("cpu")) != "cuda"
    with pytest.raises(AssertionError, match="started"):
        projected.backend_for(None, CUDA)


@pytest.mark.parametrize(("images", "nodes", "walks"), [(1, 1, 1), (2, 64, 3), (3, 65, 2), (1, 200, 5)])
def test_the_counters_suffice_exactly(images: int, nodes: int, walks: int) -> None:
    """One fewer is refused before anything runs."""
    seed, psi, gates = torch.zeros(images, 2, nodes), torch.zeros(images, 3, nodes), torch.full((walks,), 0.5)
    for missing in (0, 1):
        counters = torch.zeros(cuda.counters_size(images, nodes, walks) - missing, dtype=torch.int32)
        states = torch.zeros(1, *seed.shape)
        request, _kept = twin.request_of(
            None, seed, [psi] * walks, gates, gates, "high", states.unbind(), None, None, counters, twin.CARD
        )
        options, report = twin.Options(2, 1), twin.Report()
        well = twin.library().twin_cascade_forward(ctypes.byref(request), ctypes.byref(options), ctypes.byref(report))
        assert bool(well) == (missing == 0)
        assert (b"the counters do not suffice" in report.error) == (missing == 1)


def test_the_host_is_done_in_microseconds() -> None:
    """Five walks at batch 1, from the request to the arguments of the launch: all but the driver's own calls."""
    seed, psi, gates = torch.zeros(1, 21, 4096), [torch.zeros(1, 64, 4096)] * 5, torch.full((5,), 0.5)
    counters = torch.zeros(cuda.counters_size(1, 4096, 5), dtype=torch.int32)
    request, _kept = twin.request_of(None, seed, psi, gates, gates, "high", [seed], None, None, counters, twin.CARD)
    work, times = twin.library().twin_host_work, 1000
    assert work(ctypes.byref(request), 1) > 0
    taken = []
    for _ in range(5):
        start = time.thread_time()
        work(ctypes.byref(request), times)
        taken.append((time.thread_time() - start) / times)
    assert min(taken) <= 10e-6, f"{min(taken) * 1e6:.1f} us"
