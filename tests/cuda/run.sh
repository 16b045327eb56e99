#!/usr/bin/env bash
# run.sh: everything about the CUDA kernels that needs no GPU, in two processes side by side. Says loudly what it leaves out.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}

if [ "$(uname -m)" != x86_64 ] || ! command -v "${CXX:-g++}" > /dev/null; then
    echo "LEFT OUT: the twin of the CUDA kernels needs g++ on x86-64; NOTHING about them is tested here" >&2
    exit 0
fi
mkdir -p out
"$PYTHON" -m pytest tests/kernels --backends cuda-host -k cuda-host -q > out/cuda_host.log 2>&1 &
host=$!
failed=0
"$PYTHON" -m pytest tests/cuda -q -rs || failed=1
wait "$host" || failed=1
cat out/cuda_host.log
if ! command -v nvcc > /dev/null; then
    echo "LEFT OUT: no nvcc here, so the CUDA library was not compiled and its machine code was NOT checked" >&2
fi
exit "$failed"
