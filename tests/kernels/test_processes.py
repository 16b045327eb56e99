"""Forks, threads, fresh processes and other instruction sets."""

from __future__ import annotations

import ctypes
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

from difnet_kernels.backends.native import instruction_set, instruction_sets
from tests.support.cases import Case, make
from tests.support.truth import assert_same, both, forward

ROOT = Path(__file__).parents[2]
CASE = Case(3, (130,), 16, 5, 2, "smooth")
# CUDA cannot be used in a forked child, whoever computes
IN_A_FORK = pytest.mark.needs(device="cpu")


def _child(connection: Connection, backend: str) -> None:
    torch.set_num_threads(1)
    connection.send([x.numpy() for x in both(make(CASE), backend).tensors()])


@IN_A_FORK
@pytest.mark.parametrize("children", [1, 3])
def test_a_fork_after_a_parallel_call_does_not_hang(backend: str, threads: None, children: int) -> None:
    """As in a data loader's workers, which torch gives one thread each: the parent's thread pool does not survive the
    fork, and a child must not wait for it. (With several threads torch's own operators hang there too.)"""
    torch.set_num_threads(2)
    expected = both(make(CASE), backend).tensors()
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(children)]
    processes = [context.Process(target=_child, args=(there, backend)) for _, there in pipes]
    for process in processes:
        process.start()
    try:
        for here, _ in pipes:
            assert here.poll(60), "the child hangs"
            for mine, yours in zip(here.recv(), expected, strict=True):
                torch.testing.assert_close(torch.from_numpy(mine), yours, rtol=1e-4, atol=1e-4)
    finally:
        for process in processes:
            process.kill()
            process.join()


class _Walks(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> torch.Tensor:
        return forward(make(CASE, number=number), self.backend)


@IN_A_FORK
def test_workers_of_a_data_loader(backend: str, threads: None) -> None:
    torch.set_num_threads(2)
    data = _Walks(backend)
    expected = [data[number] for number in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    for mine, yours in zip(loader, expected, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-4)


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
from tests.support.capability import device_of
from tests.support.cases import Case, make
from tests.support.truth import both
torch.set_default_device(device_of(sys.argv[1]))
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
    """Importing compiles nothing, connects nowhere and writes nothing: no child process, no socket, no file. Nor does
    it bring torch's compiler, which takes as long to import as torch itself."""
    script = (
        "import sys\n"
        "import torch\n"
        "bad = []\n"
        "def hook(event, args):\n"
        "    if event.startswith(('subprocess.', 'os.system', 'os.exec', 'os.fork', 'socket.connect')):\n"
        "        bad.append((event, args))\n"
        "    writes = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+')\n"
        "    if writes and '.pyc' not in str(args[0]):\n"
        "        bad.append((event, args))\n"
        "sys.addaudithook(hook)\n"
        "import difnet_kernels\n"
        "assert not bad, bad\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=100)
    assert not list(tmp_path.iterdir())


def test_every_instruction_set_passes_the_smoke_tests(native: str) -> None:
    """The library picks its instructions when it is loaded, so each set that this processor has, and each model of a
    unit that it has not, gets a process of its own. All other tests use one; the summary names it."""
    sets = instruction_sets()
    assert {"baseline", instruction_set()} <= set(sets)
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-x", "-m", "smoke", "-p", "no:cacheprovider"]
    for name in sorted(set(sets) - {instruction_set()}):
        environment = {**os.environ, "DIFNET_KERNELS_ISA": name}
        done = subprocess.run(
            [*command, "--backends", native], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}"
        assert f"the library uses the instructions of {name} here" in done.stdout and " passed" in done.stdout


def _processor() -> tuple[str, set[str]]:
    """Vendor and flags, as the system tells them."""
    lines = dict(
        (line.partition(":")[0].strip(), line.partition(":")[2].strip())
        for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    return lines.get("vendor_id", ""), set(lines.get("flags", "").split())


def _permits_amx() -> bool:
    """Whether the system gives this process the state of tiles; a sandbox may not, though the processor has it."""
    request_permission, tile_data, arch_prctl = 0x1023, 18, 158
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nobody else tells what the processor has")
def test_the_sets_fit_the_processor(native: str) -> None:
    """Sets are no ladder: one that runs is taken only where it is the faster one. Intel's servers multiply pairs of bf16
    numbers at half the rate of fp32, so there bf16 fields take the fp32 kernels unless asked otherwise."""
    vendor, flags = _processor()
    needs = {
        "baseline": set(),
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
        "model": set(),
        "amx_model": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "amx": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "amx_tile", "amx_bf16"},
    }
    never = {"model", "amx_model", "amx"}  # are for tests, or have not been measured
    runnable = [name for name in instruction_sets(runnable=False) if needs[name] <= flags]
    if "amx" in runnable and not _permits_amx():
        runnable.remove("amx")
    assert list(instruction_sets()) == runnable
    slow = never if vendor == "AuthenticAMD" else {*never, "avx512bf16"}
    if "DIFNET_KERNELS_ISA" not in os.environ:
        assert instruction_set() == [name for name in runnable if name not in slow][-1]


def _asked_for(name: str) -> tuple[str, str]:
    """What a process says whose DIFNET_KERNELS_ISA is `name`: why the kernels cannot be used, and its warnings."""
    probe = "from difnet_kernels.backends import native; print(native.unusable())"
    environment = {**os.environ, "DIFNET_KERNELS_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout, done.stderr


def test_an_unknown_instruction_set_is_refused_with_the_known_ones(native: str) -> None:
    reason, warned = _asked_for("avx3")
    known = ", ".join(instruction_sets(runnable=False))
    assert reason.strip() == f"DIFNET_KERNELS_ISA must be one of {known}; got avx3. Name one of these, or unset it."
    assert reason.strip() in warned


def test_an_instruction_set_that_cannot_run_here_is_refused(native: str) -> None:
    """Asked for by name, it neither crashes nor gives way to another silently."""
    for name in set(instruction_sets(runnable=False)) - set(instruction_sets()):
        reason, warned = _asked_for(name)
        assert reason.startswith(f"DIFNET_KERNELS_ISA={name} does not run on this processor, which runs ")
        assert reason.strip() in warned


def test_the_library_may_be_loaded_again(native: str) -> None:
    """Notebooks reload modules; what is registered once must not be refused twice."""
    probe = "import importlib\nfrom difnet_kernels.backends import native\nassert importlib.reload(native).unusable() is None"
    subprocess.run([sys.executable, "-W", "error", "-c", probe], cwd=ROOT, check=True, timeout=60)


def test_instruction_sets_agree_closely(native: str, tmp_path: Path) -> None:
    """They may round differently (a register holds other partial sums), but no more than fp32 allows."""
    inputs = make(CASE)
    target = tmp_path / "result.pt"
    environment = {**os.environ, "DIFNET_KERNELS_ISA": "baseline"}
    subprocess.run(
        [sys.executable, "-c", FIRST_CALL, native, str(target)], cwd=ROOT, env=environment, check=True, timeout=100
    )
    for mine, yours in zip(torch.load(target, weights_only=True), both(inputs, native).tensors(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=2e-5, atol=2e-5 * yours.abs().max().item())
