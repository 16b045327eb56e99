"""Why a kernel did not run, where the machine is the reason: what to install, to set or to look for."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

# what the driver says at a launch after a kernel that failed before it; every later call fails, too
STICKY = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "illegal instruction",
    "misaligned",
)


def advice(error: BaseException) -> str:
    """One sentence with a blank behind it, or nothing where the kernel itself may be the reason."""
    said = str(error)
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in said:
        return _of_the_c_compiler()
    if any(words in said for words in STICKY):
        return (
            "A kernel before this one failed, perhaps another library's, and the driver says so only now: run again with "
            "CUDA_LAUNCH_BLOCKING=1 to see which; this process cannot use the GPU any more. "
        )
    if isinstance(error, OSError) and (not isinstance(error, FileNotFoundError) or _cache() in said):
        return (
            f"Triton keeps what it compiles in {_cache()}: set TRITON_CACHE_DIR to a folder that this process can write, "
            "with room in it; on a network's file system, to one for each process. "
        )
    return ""


def _of_the_c_compiler() -> str:
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return (
            f"Triton compiles a launcher in C at the first call, and {headers} has no Python.h: install the headers of this "
            "Python (python3-dev or python3-devel). "
        )
    return (
        "Triton compiles a launcher in C at the first call: install gcc or clang, or name a compiler that works here in the "
        "variable CC. "
    )


def _cache() -> str:
    return os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
