"""The package installs anywhere, says what it lacks, and its library belongs to no Python and to no torch build.

The builds here are of a hollow copy of the tree, every C++ file emptied: they test packaging and not the compiler.
`tests/two_torches.sh` does the same for a real wheel under two versions of torch.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from difnet_kernels.backends import BACKENDS, native

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = (
    "difnet_kernels",
    "csrc",
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in PACKAGED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(
            source,
            tree / name,
            **({"ignore": shutil.ignore_patterns("*.so", "build_report.json")} if source.is_dir() else {}),
        )
    for source in [*(tree / "csrc").rglob("*.cpp"), *(tree / "csrc").rglob("*.cu")]:
        source.write_text("")
    return tree


def wheel_of(tree: Path, **environment: str) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", tree / "wheels")
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, ".", cwd=tree, **environment)
    (wheel,) = (tree / "wheels").iterdir()
    return wheel


def unpacked(wheel: Path) -> Path:
    """The wheel as an installed package, without an environment of its own."""
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_one_wheel_serves_every_python(hollow: Path) -> None:
    wheel = wheel_of(hollow)
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    names = zipfile.ZipFile(wheel).namelist()
    package = {name.removeprefix("difnet_kernels/") for name in names if name.startswith("difnet_kernels/")}
    assert {"libdifnet_kernels.so", "build_report.json", "py.typed", "__main__.py", "backends/cpu.py"} <= package
    strangers = {name.split("/")[0] for name in names} - {"difnet_kernels"}
    assert [name for name in strangers if not name.endswith(".dist-info")] == []


def test_without_a_compiler_the_package_installs_and_says_so(hollow: Path) -> None:
    wheel = wheel_of(hollow, CXX="/nonexistent/c++")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = unpacked(wheel)
    assert not (site / "difnet_kernels/libdifnet_kernels.so").exists()

    told = run(sys.executable, "-m", "difnet_kernels", "info", cwd=site, PYTHONPATH=str(site))
    cpu_line = next(line for line in told.splitlines() if line.startswith("  cpu "))
    assert "not usable: the compiled library is missing" in cpu_line
    assert "/nonexistent/c++" in told

    program = (
        "import torch, difnet_kernels as d\n"
        f"assert d.__file__.startswith({str(site)!r})\n"
        "seed, psi = torch.rand(1, 2, 5), torch.rand(1, 3, 5)\n"
        "assert d.cascaded_random_walk(seed, [psi], [0.5], [0.5]).shape == seed.shape\n"
        "try: d.cascaded_random_walk(seed, [psi], [0.5], [0.5], backend='cpu')\n"
        "except d.BackendUnavailable as error: print(error)\n"
    )
    refusal = run(sys.executable, "-c", program, cwd=site, PYTHONPATH=str(site))
    assert "the compiled library is missing" in refusal


def compiler_that(folder: Path, does: str) -> str:
    """A compiler that is this machine's but for what the shell line `does` says first."""
    real = shutil.which(os.environ.get("CXX", "c++"))
    assert real is not None
    wrapper = folder / "wrapped-c++"
    wrapper.write_text(f'#!/bin/sh\n{does}\nexec {real} $MORE "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def report_of(wheel: Path) -> str:
    return zipfile.ZipFile(wheel).read("difnet_kernels/build_report.json").decode()


def test_a_compiler_too_old_is_refused_with_the_minimum(hollow: Path, tmp_path: Path) -> None:
    """And the installation goes on without kernels."""
    old = compiler_that(tmp_path, 'MORE="-U__GNUC__ -D__GNUC__=9 -U__clang_major__ -D__clang_major__=9"')
    wheel = wheel_of(hollow, CXX=old)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "the kernels need GCC 11, clang 13 or Apple clang 14, or later; this is" in report_of(wheel)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the sets of other processors have no flags")
def test_a_flag_the_compiler_does_not_know_drops_its_set_alone(hollow: Path, tmp_path: Path) -> None:
    no_bf16 = compiler_that(
        tmp_path, 'case "$*" in *-mavx512bf16*) echo "error: what is -mavx512bf16?" >&2; exit 1;; esac'
    )
    told = report_of(wheel_of(hollow, CXX=no_bf16))
    assert "instructions: baseline, avx2, avx512, " in told
    assert "; left out: avx512bf16 (the compiler does not know -mavx512bf16)" in told


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="without nvcc there is nothing to leave out")
def test_a_cmake_that_does_not_know_the_nvcc_builds_without_cuda_and_says_so(hollow: Path) -> None:
    """CMake 3.22 beside nvcc 13: it finds the compiler, and no C++20 of it."""
    lists, found = hollow / "CMakeLists.txt", "  enable_language(CUDA)\n"
    text = lists.read_text()
    assert text.count(found) == 1
    lists.write_text(text.replace(found, f'{found}  set(CMAKE_CUDA_COMPILE_FEATURES "cuda_std_17")\n'))
    wheel = wheel_of(hollow)
    assert "CUDA: left out, CMake " in report_of(wheel) and "brings a newer one" in report_of(wheel)
    assert any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="without nvcc there is nothing to leave out")
def test_an_nvcc_that_does_not_know_the_newest_cards_compiles_for_the_others(hollow: Path, tmp_path: Path) -> None:
    """As that of CUDA 12.6, which would fail the installation."""
    old = tmp_path / "nvcc"
    knows = 'case "$*" in --list-gpu-code) echo sm_80; echo sm_90; exit;; *compute_1[0-9][0-9]*) exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{knows}\nexec {shutil.which("nvcc")} "$@"\n')
    old.chmod(0o755)
    told = report_of(wheel_of(hollow, CUDACXX=str(old)))
    assert "for compute_80,sm_80,sm_90; left out: 100, 120 (this nvcc does not know them)" in told


def test_a_stale_library_is_not_packed(hollow: Path) -> None:
    """A build that fails after one that worked leaves nothing of the first behind."""
    wheel_of(hollow).unlink()
    for remembered in (hollow / "build").glob("temp*"):  # the compiler that worked; build/lib still holds its library
        shutil.rmtree(remembered)
    wheel = wheel_of(hollow, CXX="/nonexistent/c++")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


def test_a_defect_in_the_sources_fails_the_installation(hollow: Path) -> None:
    """Only a missing tool is forgiven."""
    (hollow / "csrc/library.cpp").write_text("#error broken\n")
    with pytest.raises(AssertionError, match="#error broken"):
        wheel_of(hollow)


def test_developers_rebuild_only_what_changed(hollow: Path) -> None:
    build = (sys.executable, "setup.py", "build_ext", "--inplace")
    run(*build, cwd=hollow)
    library = hollow / "difnet_kernels/libdifnet_kernels.so"
    first = library.stat().st_mtime_ns
    assert "no work to do" in run(*build, cwd=hollow)
    (hollow / "csrc/library.cpp").write_text("extern int more; int more = 1;\n")
    again = run(*build, cwd=hollow)
    assert again.count("Building CXX object") == 1
    assert library.stat().st_mtime_ns > first
    assert json.loads((hollow / "difnet_kernels/build_report.json").read_text())["library"] is True


@pytest.mark.smoke
def test_info_names_every_backend_and_whether_it_runs() -> None:
    told = run(sys.executable, "-m", "difnet_kernels", "info")
    for name, backend in BACKENDS.items():
        reason = backend.unusable()
        (line,) = (line for line in told.splitlines() if line.split()[:1] == [name])
        assert line.endswith("usable" if reason is None else reason)


@pytest.mark.smoke
def test_the_library_needs_torch_and_the_system_alone() -> None:
    """No Python, no OpenMP, no path of the machine it was built on."""
    dynamic = run("readelf", "-d", native.LIBRARY)
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    system = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "ld-linux")
    assert {name for name in needed if not name.startswith(system)} == {"libtorch.so"}
    assert "PATH)" not in dynamic  # RPATH or RUNPATH


@pytest.mark.smoke
def test_the_library_uses_the_stable_abi_alone() -> None:
    """Every symbol from torch is one of its C functions; a C++ name would tie the library to one version of torch."""
    symbols = run("nm", "--dynamic", "--undefined-only", "--demangle", native.LIBRARY)
    names = [line.split(maxsplit=1)[1] for line in symbols.splitlines()]
    from_torch = [name for name in names if any(word in name for word in ("torch", "c10", "at::", "Py"))]
    assert from_torch, "the library registers its operators through torch"
    assert [name for name in from_torch if not name.startswith(("aoti_torch_", "torch_"))] == []


@pytest.mark.smoke
def test_the_library_exports_nothing() -> None:
    """It registers itself when it is loaded; an exported name could meet its twin in another library."""
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", native.LIBRARY)
    # but the C entries of the CUDA kernels, which tests call without torch
    entries = (" T difnet_cuda_cascade_forward", " T difnet_cuda_cascade_backward")
    ours = [line for line in symbols.splitlines() if "difnet" in line and not line.endswith(entries)]
    assert ours == []
