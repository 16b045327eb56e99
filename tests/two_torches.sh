#!/usr/bin/env bash
# two_torches.sh WHEEL PYTHON...: the one wheel works under the torch of each interpreter. Their environments stay as they are.
set -euo pipefail
wheel=$(realpath "$1")
shift
case $(basename "$wheel") in
    *-py3-none-any.whl) echo "$wheel holds no compiled library" >&2 && exit 1 ;;
    *-py3-none-*.whl) ;;
    *) echo "$wheel is not tagged py3-none-PLATFORM" >&2 && exit 1 ;;
esac

for python in "$@"; do
    python=$(realpath --no-symlinks "$python")
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-deps --target "$site" "$wheel"
    # from an empty folder, so that no source tree can stand in for the wheel
    (cd "$site" && PYTHONPATH="$site" "$python" - "$site") << 'PROGRAM'
import sys

import torch

import difnet_kernels
from difnet_kernels.backends import BACKENDS, cpu

assert difnet_kernels.__file__.startswith(sys.argv[1]), difnet_kernels.__file__
assert cpu.unusable() is None, cpu.unusable()

torch.manual_seed(0)
seed = torch.randn(2, 5, 9, 7, dtype=torch.float64, requires_grad=True)
psi = [torch.randn(2, width, 9, 7, dtype=torch.float64, requires_grad=True) for width in (3, 8)]
results = {}
for backend in ("cpu", "reference"):
    diffused = difnet_kernels.cascaded_random_walk(seed, psi, [0.5, 0.7], [0.6, 0.8], backend=backend)
    results[backend] = [diffused, *torch.autograd.grad(diffused.square().sum(), [seed, *psi])]
for ours, truth in zip(results["cpu"], results["reference"]):
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
print(f"torch {torch.__version__}: loads; forward and backward agree with the reference; backends {list(BACKENDS)}")
PROGRAM
    rm -rf "$site"
done
