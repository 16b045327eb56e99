"""Memory grows with N, not with N²; nothing is kept after a call; nothing is written beyond what is allocated."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
import torch

from difnet_kernels import BACKENDS, cascaded_random_walk
from difnet_kernels.backends import native
from tests.support.cases import DTYPES, Case, make
from tests.support.truth import assert_same, both

ROOT = Path(__file__).parents[2]
# argv: a backend, the number of threads, and what the script below it takes
HEADER = textwrap.dedent(
    """
    import sys, torch
    from tests.support.capability import device_of

    backend, threads, *rest = sys.argv[1:]
    torch.set_num_threads(int(threads))
    device = device_of(backend)
    torch.set_default_device(device)

    def peak():  # MiB; getrusage would count what the parent held when it forked
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    """
)
CASCADE = textwrap.dedent(
    """
    from difnet_kernels import cascaded_random_walk

    nodes, walks = int(rest[0]), int(rest[1])

    def run(n):
        seed = torch.randn(1, 21, n).requires_grad_()
        psi = [torch.randn(1, 64, n).mul_(0.3).requires_grad_() for _ in range(walks)]
        y = cascaded_random_walk(seed, psi, [0.5] * walks, [0.5] * walks, backend=backend)
        y.sum().backward()

    run(64)
    before = peak()
    inputs = nodes * (21 + 64 * walks) * 4 / 2**20  # and as much again for their gradients
    run(nodes)
    print(peak() - before - 2 * inputs)
    """
)
STEADY_STATE = textwrap.dedent(
    """
    from difnet_kernels import diffuse

    def run(n):
        seed, psi = torch.randn(1, 21, n).requires_grad_(), torch.randn(1, 64, n).mul_(0.3).requires_grad_()
        diffuse(seed, psi, 0.9, tol=1e-2, backend=backend).sum().backward()

    run(64)
    before = peak()
    run(int(rest[0]))
    print(peak() - before - 2 * int(rest[0]) * (21 + 64) * 4 / 2**20)
    """
)
PROJECTION = textwrap.dedent(
    """
    from difnet_kernels import PsiProjection, psi_projection

    training = rest[0] == "train"

    def run(side, grid):
        project = PsiProjection(3, 64).train(training)
        image = torch.randn(1, 3, side, side).requires_grad_()
        psi = psi_projection(image, project.weight, project.bias, project.norm, (grid, grid), backend=backend)
        psi.sum().backward()

    run(16, 4)
    before = peak()
    run(505, 64)
    print(peak() - before - 2 * 3 * 505**2 * 4 / 2**20)
    """
)


def _measured(script: str, *arguments: object) -> float:
    """MiB by which a fresh process (on a GPU its tensors) grows, as `script` prints it. The holes that glibc leaves between
    blocks are not counted, because every large block is mapped by itself: five walks, which need 22 MiB, grew by 27 to 65
    with them, by chance."""
    command = [sys.executable, "-c", HEADER + script, *map(str, arguments)]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True, timeout=100)
    return float(done.stdout)


def _growth(backend: str, nodes: int, walks: int, threads: int = 2) -> float:
    """One cascade forward and backward, inputs and their gradients not counted."""
    return _measured(CASCADE, backend, threads, nodes, walks)


def _projection_growth(backend: str, mode: str) -> float:
    """One Ψ of an image of 505², forward and backward, the image and its gradient not counted."""
    return _measured(PROJECTION, backend, 2, mode)


@pytest.mark.parametrize("walks", [1, 5])
def test_memory_is_linear_in_the_nodes(kernel: str, walks: int) -> None:
    """505² at h/5: one P of 10,201² in fp32 is 397 MiB; the promise is 64 MiB for five walks, forward and backward."""
    # a matrix unit has operands in three parts and two forms, and the promise all the same
    on_unit = kernel == "cpu" and native.instruction_set() in ("amx", "amx_model", "model")
    assert _growth(kernel, 10_201, walks) < (64 if walks == 5 or on_unit else 32)


def test_memory_of_a_steady_state_does_not_follow_its_walks(kernel: str) -> None:
    """16,384 nodes, where one P is 1 GiB: within twice what a single walk asks for."""
    assert _measured(STEADY_STATE, kernel, 2, 16_384) < 2 * _growth(kernel, 16_384, 1)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_projected_map_is_never_stored(kernel: str, mode: str) -> None:
    """64 channels at 505² are 62 MiB; ψ, its gradient, positions and workspace are what may grow."""
    assert _projection_growth(kernel, mode) < 24


def test_the_composed_reference_shows_that_the_map_is_seen() -> None:
    """The twin: it stores the projected map."""
    assert _projection_growth("reference", "eval") > 62


def test_memory_does_not_follow_the_threads(kernel: str) -> None:
    """A copy of ψ's sums per thread would show at 16 threads: it is 2.5 MiB."""
    assert _growth(kernel, 10_201, 1, threads=16) < _growth(kernel, 10_201, 1) + 10


def test_the_dense_reference_shows_that_growth_is_seen() -> None:
    """The twin: a backend that does store N x N fails the same measurement."""
    assert _growth("reference", 3_000, 1) > 64


def test_nothing_is_kept_after_a_thousand_calls(backend: str) -> None:
    """The graph, the saved walks and the inputs go when the result goes."""
    inputs = make(Case(1, (9,), 4, 3, 2, "smooth"))
    watched = []
    for _ in range(1000):
        psi = [p.clone().requires_grad_() for p in inputs.psi]
        y = cascaded_random_walk(inputs.seed, psi, inputs.mu, inputs.beta, backend=backend)
        assert isinstance(y, torch.Tensor)
        y.sum().backward()
        watched += [weakref.ref(y), weakref.ref(psi[0]), weakref.ref(psi[0].grad)]
    del psi, y
    gc.collect()
    assert not any(reference() is not None for reference in watched)


def test_no_cycle_keeps_the_graph_alive(backend: str) -> None:
    """Without the garbage collector: reference counts alone must free the saved tensors."""
    inputs = make(Case(1, (9,), 4, 3, 1, "smooth"))
    gc.collect()
    gc.disable()
    try:
        psi = inputs.psi[0].clone().requires_grad_()
        y = cascaded_random_walk(inputs.seed, [psi], inputs.mu, inputs.beta, backend=backend)
        assert isinstance(y, torch.Tensor)
        node = weakref.ref(y.grad_fn)
        alive = weakref.ref(y)
        del y
        assert node() is None and alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodes", [1, 7, 63, 65, 129])
def test_poisoned_and_plain_allocations_agree(backend: str, poisoned: None, nodes: int, dtype: str) -> None:
    """What torch.empty happens to hold (NaN here) has no say in the result."""
    assert torch.empty(5).isnan().all(), "the poison works"
    inputs = make(Case(2, (nodes,), 17, 5, 2, "smooth"), DTYPES[dtype])
    bitten = both(inputs, backend).tensors()
    assert all(x.isfinite().all() for x in bitten)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[assignment]
    assert_same(both(inputs, backend).tensors(), bitten)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "steps"])
def test_guard_bands_around_the_results_stay(backend: str, layout: str) -> None:
    """The backend's own entry, given results that lie inside larger memory: only they are written, and all of them."""
    case = Case(2, (65,), 6, 5, 2, "smooth")
    inputs = make(case)
    run = BACKENDS[backend]

    def guarded(shape: tuple[int, ...], last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        if last:
            memory, view = guarded((shape[0], shape[1], shape[3], shape[2]))
            return memory, view.mT
        size = torch.Size(shape).numel()
        memory = torch.full((size + 128,), 12345.0)
        return memory, memory[64 : 64 + size].view(shape)

    steps = case.walks if layout == "steps" else 1
    frames = [guarded((steps, 2, 5, 65), layout == "channels_last"), guarded((2, 2, 65, 5)), guarded((2, 2, 65))]
    (_, states), (_, walked), (_, row_lse) = frames
    run.cascade_forward(
        None,
        inputs.seed,
        inputs.psi,
        inputs.mu,
        inputs.beta,
        "high",
        states=list(states),
        walked=walked,
        row_lse=row_lse,
    )
    gradients = [guarded((2, 5, 65)), guarded((2, 6, 65)), guarded((2, 6, 65)), guarded((2,)), guarded((2,))]
    run.cascade_backward(
        [inputs.grad],
        None,
        inputs.seed,
        inputs.psi,
        inputs.mu,
        inputs.beta,
        walked,
        row_lse,
        "high",
        grad_state=None,
        grad_seed=gradients[0][1],
        grad_psi=[gradients[1][1], gradients[2][1]],
        grad_mu=gradients[3][1],
        grad_beta=gradients[4][1],
    )
    for memory, view in [*frames, *gradients]:
        assert bool((memory[:64] == 12345).all()) and bool((memory[-64:] == 12345).all())
        assert not (view == 12345).any()
