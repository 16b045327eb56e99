# One-word commands. `make test` and `make demo` work in a fresh clone: they need Python, a C++ compiler and pip's index.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.10
BASE ?= main

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# the environment need not be activated: its cmake, ninja, ruff ... come first
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help env build test triton smoke demo check format lint bench compare gpu docs sanitize clean
help:
	@echo "make demo      segment a photograph, train a small DifNet: figures, timings, tables (out/demo)"
	@echo "make test      the whole test suite"
	@echo "make triton    the tests of the Triton kernels with another version (TRITON=3.6.0)"
	@echo "make check     format, lint, types and the smoke tests: before every commit"
	@echo "make bench     measure against other implementations"
	@echo "make compare   measure BASE (main) and the working tree, alternately"
	@echo "make gpu       tests and measurements on the GPU of this machine (OUT=out/gpu; docs/gpu.md)"
	@echo "make docs      write the measured tables and figures of the documents again"
	@echo "make sanitize  the C++ kernels under the address and undefined-behaviour sanitizers"
	@echo "make env       only the environment, in $(VENV) (PYTHON=... picks the interpreter)"

env: $(READY)

# torch is installed first and the build isolated from nothing: otherwise pip would unpack torch a second time
$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed: make PYTHON=python3.12')"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)" numpy "setuptools>=77" "cmake>=3.22" ninja
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[test-all,check,examples]"
	@touch $@
	@$(PY) -m difnet_kernels info

# quick when nothing changed
build: $(READY)
	@mkdir -p out
	@$(PY) setup.py -q build_ext --inplace > out/build.log 2>&1 || { cat out/build.log; exit 1; }

test: build
	$(PY) -c "import triton" 2> /dev/null || $(PY) -m pip install --quiet triton  # a CPU-only torch comes without it
	$(PY) tests/rooms.py

# the kernels' tests with another Triton than the environment's: make triton TRITON=3.6.0 (whose interpreter needs NumPy < 2.4)
TRITON ?= 3.6.0
triton: build
	$(PY) -m pip install --quiet --upgrade --no-deps --target out/triton-$(TRITON) triton==$(TRITON) "numpy<2.4"
	PYTHONPATH=$(abspath out)/triton-$(TRITON) $(PY) tests/rooms.py triton-interpreted triton-compiled

smoke: build
	$(PY) -m pytest tests --ignore=tests/triton -m smoke -q

demo: build
	$(PY) -m models.demo

check: format lint smoke

format: $(READY)
	ruff format -q .
	ruff check -q --fix-only .
	clang-format -i $(CXX_FILES)

lint: $(READY)
	ruff format --check .
	ruff check .
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)

CXX_FILES = $(shell git ls-files --cached --others --exclude-standard 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

bench: build
	$(PY) -m pytest benchmarks --benchmark-only

# writes OUT.tar.gz: python -m benchmarks.report --archive OUT.tar.gz; MORE=--resume goes on
OUT ?= out/gpu
gpu: build
	$(PY) -m benchmarks.gpu_suite --out $(OUT) $(MORE)

docs: build
	$(PY) -m benchmarks.report

# two revisions, alternately: make compare BASE=main
compare: build
	$(PY) -m benchmarks.compare --base $(BASE)

# a copy of the package with an instrumented library, and again over the model of a matrix unit; the loader needs the
# sanitizer before Python
SANITIZED := build/sanitize
SANITIZED_TESTS := $(patsubst %,tests/kernels/test_%.py,forward backward layouts sizes extremes nonfinite float_mode projection_kernels random_shapes)
sanitize: build
	@mkdir -p $(SANITIZED) && rm -rf $(addprefix $(SANITIZED)/,difnet_kernels tests)
	@cp -r difnet_kernels tests pyproject.toml $(SANITIZED)/ && rm -f $(SANITIZED)/difnet_kernels/*.so
	cmake -S . -B $(SANITIZED)/cmake -G Ninja -DDIFNET_KERNELS_SANITIZE=ON -DDIFNET_KERNELS_CUDA_ARCHS= \
	    -DDIFNET_KERNELS_OUTPUT=$(abspath $(SANITIZED))/difnet_kernels > out/sanitize.log
	cmake --build $(SANITIZED)/cmake
	for isa in "" model; do (cd $(SANITIZED) && \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 DIFNET_KERNELS_ISA=$$isa \
	    $(abspath $(PY)) -m pytest $(SANITIZED_TESTS) --backends cpu -m smoke -q -s -p no:cacheprovider) || exit 1; done

clean:
	rm -rf build out dist *.egg-info difnet_kernels/*.so difnet_kernels/build_report.json
