"""How many tests a whole run must hold. A test that vanishes or skips turns the run red, also when all others pass."""

from __future__ import annotations

ONCE = 226  # those without a backend
PER_BACKEND = 1373  # on each backend, the reference included
KERNELS_ONLY = 548  # on each backend but the reference
NATIVE_ONLY = 35  # on the compiled library
SKIPPED = 0
# of those, what a backend refuses by its own account: fp64, D above 256, and on a GPU the tensors of a forked process
REFUSED = {"triton on cpu": 304, "triton on cuda": 307}
