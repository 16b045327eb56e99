"""Runs every test over every backend this machine can use, and says what did not run.

A test that takes `backend` runs on all of them. One that takes `kernel` runs on all but the reference: it states a
promise of the kernels (O(N) memory, the same bits whatever the strides or threads) that dense BLAS calls cannot make.
One that takes `native` concerns the compiled library alone; one that takes `unit`, too, a matrix unit or a model of it that
this processor runs, and one that takes `amx` that unit.

What a backend refuses (tests/support/capability.py) is not generated for it: a test says what it needs by its parameters
`dtype`, `seed_dtype`, `psi_dtype`, `embed`, `classes`, `channels`, by those that are a `Case` or a `Shape`, or by the mark
`needs`, which also knows `bias` and `lse`; the summary names who refuses those. Tensors that a test makes lie on the device of
its backend, because that is torch's default device meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from difnet_kernels.backends import BACKENDS, cpu
from difnet_kernels.backends.native import instruction_sets
from tests.aarch64 import backend as aarch64
from tests.cuda import host_backend
from tests.support.capability import device_of, takes
from tests.support.cases import DTYPES, Case
from tests.support.projections import Shape

# read when cuBLAS starts: without it the truth of a test on a GPU may not run where `poisoned` asks for determinism
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.triton import interpreter

    interpreter.install()
HERE = Path(__file__).parent
WALKS = (HERE / "kernels", HERE / "ops")  # their skips are pinned
WIDTHS = ("embed", "classes", "channels")  # of a problem, which a backend may refuse
UNITS = ("model", "amx_model", "amx")  # instruction sets with a matrix unit, or with a model of it
SKIPPED = 0  # a test that begins to skip turns the run red, also when all others pass


def _of_the_walk(path: Path) -> bool:
    return path.parent in WALKS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends", help="comma-separated: test these and fail if one cannot run here (default: all that can)"
    )
    parser.addoption("--fuzz", type=int, default=200, help="number of random calls of tests/kernels/test_fuzz.py")
    parser.addoption("--schedules", type=int, default=1, help="of every shape under the race detector (tests/cuda)")
    parser.addoption("--fuzz-from", type=int, default=0, help="the first of them")


def _chosen(config: pytest.Config) -> list[str]:
    named = config.getoption("--backends")
    if named is None:
        return [name for name, backend in BACKENDS.items() if backend.unusable() is None]
    chosen = named.split(",")
    if host_backend.NAME in chosen:  # a backend of the tests alone
        BACKENDS.setdefault(host_backend.NAME, host_backend.BACKEND)
    if aarch64.NAME in chosen:
        BACKENDS.setdefault(aarch64.NAME, aarch64.BACKEND)
    for name in chosen:
        reason = BACKENDS[name].unusable() if name in BACKENDS else f"not one of {tuple(BACKENDS)}"
        if reason is not None:
            raise pytest.UsageError(f"--backends {name}: {reason}")
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = _chosen(metafunc.config)
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", chosen, ids=str)
    if "fuzzed" in metafunc.fixturenames:
        first, count = (metafunc.config.getoption(name) for name in ("fuzz_from", "fuzz"))
        metafunc.parametrize("fuzzed", range(first, first + count))
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", [name for name in chosen if name != "reference"], ids=str)
    if "native" in metafunc.fixturenames:
        metafunc.parametrize("native", [name for name in chosen if name == "cpu"], ids=str)
    if "unit" in metafunc.fixturenames:
        metafunc.parametrize("unit", _units() if "cpu" in chosen else [], ids=str)
    if "amx" in metafunc.fixturenames:
        metafunc.parametrize("amx", [name for name in _units() if name == "amx"], ids=str)


def _units() -> list[str]:
    return [name for name in UNITS if cpu.unusable() is None and name in instruction_sets()]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _backend(item: pytest.Item) -> str | None:
    """The backend that an item runs on, if it runs on one."""
    found = _parameters(item)
    return found.get("backend") or found.get("kernel") or found.get("native")


def _taken(item: pytest.Item) -> bool:
    """Whether the backend of an item takes what the item needs."""
    backend = _backend(item)
    if backend is None:
        return True
    if not host_backend.takes_test(backend, item):
        return False
    needs = [{name.removeprefix("seed_").removeprefix("psi_"): value} for name, value in _parameters(item).items()]
    needs += [mark.kwargs for mark in item.iter_markers("needs")]
    needs += [vars(problem) for problem in _parameters(item).values() if isinstance(problem, (Case, Shape))]
    for need in needs:
        dtype, device = need.get("dtype", "fp32"), need.get("device", device_of(backend))
        more = {name: bool(need.get(name)) for name in ("bias", "lse")}
        sizes = {name: need[name] for name in WIDTHS if isinstance(need.get(name), int)}
        if not takes(backend, device, DTYPES.get(dtype, dtype), **sizes, **more):
            return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # where no kernel runs, pytest would list its tests as skipped for want of a parameter; the summary says so instead
    def has_all(item: pytest.Item) -> bool:
        wanted = {"backend", "kernel", "native", "unit", "amx"} & set(getattr(item, "fixturenames", ()))
        return all(isinstance(_parameters(item).get(name), str) for name in wanted)

    items[:] = [item for item in items if has_all(item) and _taken(item)]


class Counts:
    """How many tests of the kernels and operators were collected, for the summary."""

    def __init__(self) -> None:
        self.once = 0
        self.per_backend: dict[str, int] = {}

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if not _of_the_walk(item.path):
                continue
            backend = _backend(item)
            if backend:
                self.per_backend[backend] = self.per_backend.get(backend, 0) + 1
            else:
                self.once += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Counts(), "walk-counts")


def _skipped(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return []
    return [report for report in reporter.stats.get("skipped", []) if _of_the_walk(Path(report.fspath).resolve())]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    counts = session.config.pluginmanager.get_plugin("walk-counts")
    if counts is not None and exitstatus == 0 and len(_skipped(session.config)) != SKIPPED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.pluginmanager.get_plugin("walk-counts")
    if counts is None:
        return
    ran = ", ".join(f"{count} on {name}" for name, count in counts.per_backend.items())
    absent = [f"{name} ({backend.unusable()})" for name, backend in BACKENDS.items() if backend.unusable() is not None]
    skipped = _skipped(config)
    terminalreporter.write_line(f"walk: {ran or 'no backend'}; {counts.once} backend-free; {len(skipped)} skipped")
    if "cpu" in counts.per_backend:
        terminalreporter.write_line(f"walk: the library uses the instructions of {cpu.instruction_set()} here")
        if lacking := ", ".join(name for name in UNITS if name not in _units()):
            terminalreporter.write_line(f"walk: NOT TESTED, for this processor or this library has no {lacking}")
    for name in _chosen(config):
        refused = [what for what in ("bias", "lse") if not takes(name, device_of(name), **{what: True})]
        if refused:
            terminalreporter.write_line(f"walk: {name} refuses {' and '.join(refused)}, so not tested with them")
    if absent:
        terminalreporter.write_line(f"walk: not usable here, so not tested: {'; '.join(absent)}")
    if len(skipped) != SKIPPED:
        terminalreporter.write_line(
            f"FAILED walk: {len(skipped)} skipped, pinned {SKIPPED} in tests/conftest.py", red=True
        )


@pytest.fixture(autouse=True)
def placed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The device of the backend under test is torch's default while its test runs."""
    backend = _backend(request.node)
    device = "cpu" if backend is None else device_of(backend)
    if device == "cpu":
        yield
        return
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every torch.empty is filled with NaN, so memory that nobody writes cannot look right by luck."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[assignment]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[assignment]
    torch.use_deterministic_algorithms(strict)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
