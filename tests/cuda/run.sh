#!/usr/bin/env bash
# run.sh: everything about the CUDA kernels that needs no GPU. Says loudly what it leaves out.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}

if [ "$(uname -m)" != x86_64 ] || ! command -v "${CXX:-g++}" > /dev/null; then
    echo "LEFT OUT: the twin of the CUDA kernels needs g++ on x86-64; NOTHING about them is tested here" >&2
    exit 0
fi
"$PYTHON" -m pytest tests/cuda -q -rs
"$PYTHON" -m pytest tests/kernels --backends cuda-host -k cuda-host -q
if ! command -v nvcc > /dev/null; then
    echo "LEFT OUT: no nvcc here, so the CUDA library was not compiled and its machine code was NOT checked" >&2
fi
