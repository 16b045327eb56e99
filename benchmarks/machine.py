"""The machine under the numbers: what it is, and how fast its multiply-add units run right now."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.device import Cuda, Device, Rehearsal


def describe(on: Device) -> dict[str, object]:
    """Device, clocks, threads and versions: whatever a reader needs to judge or repeat a number."""
    facts: dict[str, object] = {
        "device": "cpu",
        "kind": processor_kind(),
        "cpu": _cpu_name(),
        "simd": _simd(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock_mhz": _clock_mhz(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if isinstance(on, (Cuda, Rehearsal)):
        facts |= on.facts()
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    return facts


def processor_kind() -> str:
    """What decides how ours compares with its peers: "amx" (bf16 matrix units), "avx512", or "other"."""
    flags = {flag for line in _cpuinfo("flags")[:1] for flag in line.split()}
    return "amx" if {"amx_tile", "amx_bf16"} <= flags else "avx512" if "avx512f" in flags else "other"


def commit() -> str:
    """The commit of the working tree, with "+changes" where files differ from it; where there is no git, what the
    environment variable BENCHMARK_COMMIT says."""
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    root = Path(__file__).parent
    try:
        run = {"capture_output": True, "text": True, "check": True, "cwd": root}
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../docs"]
        changed = subprocess.run(status, **run).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if changed else "")


def cpu_peak(threads: int | None = None) -> dict[str, object]:
    """FLOP/s of fp32 multiply-adds on all threads, and how it was measured: a register-only loop where a C compiler
    is at hand, otherwise the largest rate of a square matrix product (which some libraries run below the peak)."""
    threads = threads or torch.get_num_threads()
    product = max(_product_rate() for _ in range(3))
    probe = _probe()
    if probe is None:
        return {"flop_per_s": product, "how": "3072² matrix product", "product_flop_per_s": product}
    call, lanes = probe
    rate = max(_loop_rate(call, lanes, threads) for _ in range(5))
    return {"flop_per_s": rate, "how": f"multiply-add loop, {lanes} lanes", "product_flop_per_s": product}


def _loop_rate(call: ctypes._CFuncPtr, lanes: int, threads: int, steps: int = 4_000_000) -> float:
    workers = [threading.Thread(target=call, args=(steps, 0.5)) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * steps * 16 * lanes * 2 / (time.perf_counter() - start)


def _probe() -> tuple[ctypes._CFuncPtr, int] | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    lanes = {"AVX-512": 16, "AVX2": 8}.get(_simd(), 4)
    source = Path(__file__).with_name("fma_peak.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", f"-DLANES={lanes}", "-shared", "-fPIC"]
        built = subprocess.run([compiler, *flags, str(source), "-o", str(library)], capture_output=True)
        if built.returncode != 0:
            return None
        call = ctypes.CDLL(str(library)).fma_peak
    call.argtypes, call.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float
    return call, lanes


def _product_rate(size: int = 3072) -> float:
    x = torch.rand(size, size)
    start = time.perf_counter()
    x @ x
    return 2 * size**3 / (time.perf_counter() - start)


def _cpuinfo(field: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(field)]


def _cpu_name() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def _simd() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "AVX-512"}.get(capability, capability)


def _clock_mhz() -> float | None:
    return max((float(clock) for clock in _cpuinfo("cpu MHz")), default=None)


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None
