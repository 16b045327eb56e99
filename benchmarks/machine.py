"""Describes the machine that is measured, and measures the rate of its multiply-adds."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import Device
from difnet_kernels.backends import native

UNITS = ("amx", "bfmmla")  # instruction sets with a matrix unit


def describe(on: Device) -> dict[str, Any]:
    """Device, clocks, threads and versions: whatever a reader needs to judge or repeat a number."""
    triton = __import__("triton").__version__ if find_spec("triton") else None
    simd = torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")
    clock = max((float(clock) for clock in _cpuinfo("cpu MHz")), default=None)
    return {
        "device": "cpu", "kind": processor_kind(), "cpu": describe_cpu(), "simd": simd, "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "clock_mhz": clock, "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton, "load": load(), **on.facts(),
    }  # fmt: skip


def describe_cpu() -> str:
    """The name of the processor, with its generation where the name does not tell it."""
    return " ".join(filter(None, (_processor(), generation())))


def load() -> float:
    """Processes that want a core, on the average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def processor_kind() -> str:
    """What decides how ours compares with its peers: "amx" (bf16 matrix units), "avx512", or "other"."""
    flags = {flag for line in _cpuinfo("flags")[:1] for flag in line.split()}
    return "amx" if {"amx_tile", "amx_bf16"} <= flags else "avx512" if "avx512f" in flags else "other"


def _processor() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def generation() -> str:
    """The core of an AMD processor, whose virtual machines often hide it in the name; "" of any other, or an unknown one."""
    if "AuthenticAMD" not in _cpuinfo("vendor_id")[:1] or "Zen" in _processor():
        return ""
    zen = {"23": "Zen 1 or 2", "25": "Zen 4" if processor_kind() == "avx512" else "Zen 3", "26": "Zen 5"}
    return zen.get(next(iter(_cpuinfo("cpu family")), ""), "")


def _cpuinfo(field: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(field)]


def commit() -> str:
    """The commit of the working tree, with "+changes" where files differ from it; where there is no git, what the
    environment variable BENCHMARK_COMMIT says."""
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    revision = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../docs")
    return (revision or "unknown") + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()


def cpu_peak() -> dict[str, Any] | None:
    """FLOP/s of fp32 multiply-adds on all threads by a loop that stays in registers; None without a C compiler."""
    lanes = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 4)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder) / "fma_peak.so", Path(__file__).with_name("fma_peak.c")
        flags = [
            "-O3",
            "-march=native",
            "-ffp-contract=fast",
            f"-DLANES={lanes}",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
        ]
        if not compiler or subprocess.run([compiler, *flags, str(source)], capture_output=True).returncode:
            return None
        loop = ctypes.CDLL(str(library)).fma_peak
    loop.argtypes, loop.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float
    steps, threads = 4_000_000, torch.get_num_threads()

    def rate() -> float:
        workers = [threading.Thread(target=loop, args=(steps, 0.5)) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return threads * steps * 16 * lanes * 2 / (time.perf_counter() - start)

    return {"flop_per_s": max(rate() for _ in range(5)), "how": f"multiply-add loop, {lanes} lanes"}


def unit_peak(unit: str | None = None, *, steps: int = 2_000_000) -> dict[str, Any] | None:
    """FLOP/s of bf16 products by a loop in the registers of a matrix unit, on all threads; None where there is no such
    unit, or no library. unit: the instruction set that has one, or a model (default: this processor's)."""
    if native.unusable() is not None:
        return None
    found = [name for name in UNITS if name in native.instruction_sets()]
    name = unit or next(iter(found), None)
    if name is None:
        return None
    spin, rates = torch.ops.difnet_kernels.matrix_unit_spin, []
    try:
        for _ in range(5):
            start = time.perf_counter()
            threads = spin(name, steps)
            # a step is four products of 16 rows of 32 numbers and 16 columns
            rates.append(threads * steps * 4 * 2 * 16 * 32 * 16 / (time.perf_counter() - start))
    except RuntimeError:
        return None
    return {"flop_per_s": max(rates), "how": f"bf16 products of {name}, {threads} threads"}
