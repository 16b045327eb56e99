"""What `python -m pytest tests --backends triton` would collect beside a GPU, found out without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COLLECT = """
import dataclasses
import sys
import pytest
from difnet_kernels.backends import BACKENDS

BACKENDS["triton"] = dataclasses.replace(BACKENDS["triton"], unusable=lambda: None)
sys.exit(pytest.main(["tests", "--ignore=tests/triton", "--ignore=tests/models", "--ignore=tests/benchmarks",
                      "--backends", "triton", "--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_the_suite_collects_on_a_gpu() -> None:
    """All that the backend does not refuse, on CUDA tensors."""
    done = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    forward = [
        line for line in done.stdout.splitlines() if "test_forward.py::test_the_cascade_is_right[triton-" in line
    ]
    assert len(forward) > 100 and not any("fp64" in line for line in forward)
