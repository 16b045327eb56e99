"""How many tests a whole run must hold. A test that vanishes or skips turns the run red, also when all others pass."""

from __future__ import annotations

ONCE = 0
PER_BACKEND = 0
SKIPPED = 0
