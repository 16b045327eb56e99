"""How many tests a whole run must hold. A test that vanishes or skips turns the run red, also when all others pass."""

from __future__ import annotations

ONCE = 215  # those without a backend
PER_BACKEND = 1258  # on each backend, the reference included
KERNELS_ONLY = 103  # on each backend but the reference
NATIVE_ONLY = 25  # on the compiled library
SKIPPED = 0
