"""Versions and hardware, as far as they can change a number; and which backend walks here."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import difnet_kernels
from difnet_kernels import BACKENDS
from difnet_kernels.backends import native


def backend_in_use(device: torch.device) -> str:
    """The backend that trains on a device: the first with gradients that can run here, in the library's order of
    preference."""
    others = {"cpu": ("cpu", "reference")}.get(device.type, tuple(name for name in BACKENDS if name != "cpu"))
    trains = [name for name in BACKENDS if name in others and BACKENDS[name].cascade_backward is not None]
    return next(name for name in trains if BACKENDS[name].unusable() is None)


def instruction_set(device: torch.device) -> str | None:
    """The instructions that the compiled library uses; None where it does not run."""
    return native.instruction_set() if backend_in_use(device) == "cpu" else None


def made_on(device: torch.device) -> dict[str, Any]:
    """What can move bits of a training on another machine: it is kept with the weights."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "backend": backend_in_use(device),
        "instruction_set": instruction_set(device),
        "torch": torch.__version__,
        "difnet_kernels": difnet_kernels.__version__,
    }


def environment() -> dict[str, Any]:
    """Versions and hardware, as far as they can change a number."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "difnet_kernels": difnet_kernels.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def processor_name() -> str:
    """The CPU's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with "+" for uncommitted changes; None outside a repository."""
    root = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run(["git", "-C", root, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
