"""Forks, threads, fresh processes and other instruction sets."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from difnet_kernels.backends import BACKENDS
from tests.cases import Case, make
from tests.truth import assert_same, both

ROOT = Path(__file__).parent.parent
CASE = Case(3, (130,), 16, 5, 2, "smooth")
WIDTHS = {"baseline": 128, "avx2": 256, "avx512": 512}


def _child(connection: Connection, backend: str, threads: int) -> None:
    torch.set_num_threads(threads)
    connection.send([x.numpy() for x in both(make(CASE), backend).tensors()])


@pytest.mark.parametrize("threads_in_child", [1, 2])
def test_a_fork_after_a_parallel_call_does_not_hang(backend: str, threads: None, threads_in_child: int) -> None:
    """A data loader's worker: the parent's thread pool does not survive the fork, and nobody may wait for it."""
    torch.set_num_threads(2)
    expected = both(make(CASE), backend).tensors()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(there, backend, threads_in_child))
    process.start()
    try:
        answered = here.poll(40)
        assert answered or threads_in_child > 1, "a single-threaded child waits for nobody"
        if answered:
            ours = [torch.from_numpy(x) for x in here.recv()]
            for mine, yours in zip(ours, expected, strict=True):
                torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-4)
        assert answered, "the child hangs"
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("callers", [2, 8])
def test_calls_from_many_threads_at_once(backend: str, callers: int) -> None:
    """No state is shared between calls: each thread gets what it would get alone."""
    problems = [make(CASE, number=n) for n in range(callers)]
    alone = [both(inputs, backend).tensors() for inputs in problems]
    gate = threading.Barrier(callers)

    def call(inputs):  # type: ignore[no-untyped-def]
        gate.wait()
        return [both(inputs, backend).tensors() for _ in range(10)]

    with ThreadPoolExecutor(callers) as pool:
        for results, expected in zip(pool.map(call, problems), alone, strict=True):
            for tensors in results:
                for mine, yours in zip(tensors, expected, strict=True):
                    torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-4)
                if backend != "reference":  # a BLAS may choose another blocking on another thread
                    assert_same(tensors, expected)


def test_a_call_inside_a_parallel_region_of_torch(kernel: str) -> None:
    """autograd's own threads run the backward of two losses at a time."""
    inputs = make(CASE)
    expected = both(inputs, kernel).tensors()
    results: list[list[torch.Tensor]] = []
    workers = [threading.Thread(target=lambda: results.append(both(inputs, kernel).tensors())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(results) == 4
    for tensors in results:
        assert_same(tensors, expected)


FIRST_CALL = """
import sys, torch
from tests.cases import Case, make
from tests.truth import both
inputs = make(Case(3, (130,), 16, 5, 2, "smooth"))
first, second = both(inputs, sys.argv[1]).tensors(), both(inputs, sys.argv[1]).tensors()
assert all(torch.equal(a, b) for a, b in zip(first, second)), "the first call of a process differs from the second"
torch.save(first, sys.argv[2])
"""


def test_the_first_call_of_a_process_is_like_any_other(backend: str, tmp_path: Path) -> None:
    """Nothing is tuned on live data, nothing depends on what ran before: two fresh processes agree, bit for bit."""
    answers = []
    for number in range(2):
        target = tmp_path / f"{number}.pt"
        subprocess.run([sys.executable, "-c", FIRST_CALL, backend, str(target)], cwd=ROOT, check=True, timeout=100)
        answers.append(torch.load(target, weights_only=True))
    assert_same(*answers)


def test_import_starts_nothing(tmp_path: Path) -> None:
    """Importing compiles nothing, connects nowhere and writes nothing: no child process, no socket, no file."""
    script = (
        "import sys\n"
        "import torch\n"
        "bad = []\n"
        "def hook(event, args):\n"
        "    if event.startswith(('subprocess.', 'os.system', 'os.exec', 'os.fork', 'socket.connect')):\n"
        "        bad.append((event, args))\n"
        "    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+') and '.pyc' not in str(args[0]):\n"
        "        bad.append((event, args))\n"
        "sys.addaudithook(hook)\n"
        "import difnet_kernels\n"
        "assert not bad, bad\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=100)
    assert not list(tmp_path.iterdir())


def _instruction_sets() -> list[str]:
    """Those this processor has, up to the widest that the library chooses by itself."""
    if BACKENDS["cpu"].unusable() is not None:
        return []
    return [name for name, bits in WIDTHS.items() if bits <= BACKENDS["cpu"].register_bits()]


def test_every_instruction_set_passes_the_core_tests(kernel: str) -> None:
    """The library picks its instructions when it is loaded, so each set that this processor has gets a process of its own
    and the smoke subset of the truths. The summary names the widest; one that is missing here is tested elsewhere."""
    sets = _instruction_sets()
    assert "baseline" in sets
    for name in sets[:-1]:  # the widest is what all other tests use
        environment = {**os.environ, "DIFNET_KERNELS_ISA": name}
        probe = "from difnet_kernels.backends import cpu; print(cpu.register_bits())"
        told = subprocess.run(
            [sys.executable, "-c", probe], cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        assert int(told.stdout) == WIDTHS[name]
        files = [f"tests/test_{truth}.py" for truth in ("forward", "backward", "extremes", "layouts", "nonfinite")]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "smoke", "--backends", kernel, "-p", "no:cacheprovider"]
        done = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}"
        assert " passed" in done.stdout


def test_instruction_sets_agree_closely(kernel: str, tmp_path: Path) -> None:
    """They may round differently (a register holds other partial sums), but no more than fp32 allows."""
    inputs = make(CASE)
    target = tmp_path / "result.pt"
    environment = {**os.environ, "DIFNET_KERNELS_ISA": "baseline"}
    subprocess.run(
        [sys.executable, "-c", FIRST_CALL, kernel, str(target)], cwd=ROOT, env=environment, check=True, timeout=100
    )
    for mine, yours in zip(torch.load(target, weights_only=True), both(inputs, kernel).tensors(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=2e-5, atol=2e-5 * yours.abs().max().item())
