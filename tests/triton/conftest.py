"""Triton decides at import whether it interprets or compiles, so the two halves of this folder need a process each:

TRITON_INTERPRET=1 python -m pytest tests/triton      the kernels' arithmetic, on the CPU
python -m pytest tests/triton                         the kernels' machine code, compiled ahead of time
"""

from __future__ import annotations

import os

collect_ignore = ["compiled" if os.environ.get("TRITON_INTERPRET") == "1" else "interpreted"]
