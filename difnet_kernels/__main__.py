"""`python -m difnet_kernels info`: versions, devices, and for each backend whether it runs here, or why not."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import difnet_kernels
from difnet_kernels.backends import BACKENDS, native

_PACKAGE = Path(__file__).parent


def info() -> str:
    """What a bug report needs, and what a user asks first: is the fast path in use, and if not, why."""
    lines = [
        f"difnet_kernels {difnet_kernels.__version__} at {_PACKAGE}{', a source tree' if native.source_tree() else ''}",
        f"python {platform.python_version()}, torch {torch.__version__}, triton {_version('triton')}, "
        f"numpy {_version('numpy')}, {platform.platform()}",
        f"CPU: {_cpu_name()}, {torch.get_num_threads()} threads, torch uses {torch.backends.cpu.get_cpu_capability()}",
        *(f"GPU: {gpu}" for gpu in _gpus()),
        f"library: {_library()}",
        "backends, the preferred one first:",
    ]
    width = max(map(len, BACKENDS))
    for name, backend in BACKENDS.items():
        reason = backend.unusable()
        lines.append(f"  {name:{width}}  {'usable' if reason is None else f'not usable: {reason}'}")
    return "\n".join(lines)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not torch.backends.cuda.is_built():
        return ["none, this torch is built without CUDA"]
    if not torch.cuda.is_available():
        return [f"none found (torch is built for CUDA {torch.version.cuda})"]
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]


def _library() -> str:
    """What setup.py recorded when it built the library or could not."""
    report_file = _PACKAGE / "build_report.json"
    notes = "; ".join(json.loads(report_file.read_text())["notes"]) if report_file.exists() else ""
    if native.LIBRARY.exists():
        used = f"; uses {native.instruction_set()}" if native.unusable() is None else ""
        return f"{native.LIBRARY.name} ({notes or 'built by hand'}){used}"
    return f"none: {native.unusable()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m difnet_kernels", description=difnet_kernels.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, and which backends run here")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
