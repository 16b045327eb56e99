"""The compiled library: where it is, whether it loads, which instruction sets it holds and uses (csrc/cpu/isa.def)."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent.parent / "libdifnet_kernels.so"
# the operators that write their results into arguments, and so return nothing under a compiler either
KERNELS = ("walk_forward", "walk_backward", "project_pool_forward", "project_pool_backward")


def _load() -> str | None:
    """Load the library and register its fake kernels; the reason if it cannot be used. Doing so twice changes nothing."""
    if not LIBRARY.exists():
        return "the compiled library is missing: no C++ compiler was found at installation; install one and reinstall"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled library does not load under torch {torch.__version__}: {error}"
    for name in KERNELS:
        torch.library.register_fake(f"difnet_kernels::{name}", _writes_into_arguments)
    try:
        instruction_set()
    except RuntimeError as error:  # DIFNET_KERNELS_ISA names no set, or one that this processor does not run
        reason = str(error).splitlines()[0]
        warnings.warn(f"the CPU kernels of difnet_kernels are not used: {reason}", stacklevel=2)
        return reason
    return None


def _writes_into_arguments(*args: object) -> None:
    pass


def instruction_set() -> str:
    """The set in use: the last preferred one that this processor runs, or the one that DIFNET_KERNELS_ISA names."""
    return str(torch.ops.difnet_kernels.instruction_set())


def instruction_sets(*, runnable: bool = True) -> tuple[str, ...]:
    """The sets that the library holds, and of these, unless not `runnable`, only what this processor runs."""
    return tuple(torch.ops.difnet_kernels.instruction_sets(runnable))


_MISSING = _load()


def unusable() -> str | None:
    """Why the library cannot be used on this machine, or None."""
    return _MISSING
