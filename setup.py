"""Drives CMake and puts the library into the package; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "libdifnet_kernels.so"
REPORT = "build_report.json"


class Unbuildable(Exception):
    """This machine cannot compile the library; the package works without it."""


class CMakeBuild(build_ext):
    """Compile the library, or leave a report that says why not."""

    def run(self) -> None:
        package = Path(self.build_lib) / "difnet_kernels"
        package.mkdir(parents=True, exist_ok=True)
        (package / LIBRARY).unlink(missing_ok=True)
        try:
            report = {"library": True, "notes": self.compile(package)}
        except Unbuildable as reason:
            report = {"library": False, "notes": [str(reason)]}
            warnings.warn(f"difnet_kernels is installed without its compiled library: {reason}", stacklevel=1)
        (package / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        if self.inplace:
            for name in (LIBRARY, REPORT):
                target = ROOT / "difnet_kernels" / name
                target.unlink(missing_ok=True)  # a library in use is replaced, never overwritten
                if (package / name).exists():
                    shutil.copy2(package / name, target)

    def compile(self, package: Path) -> list[str]:
        if os.name != "posix":
            raise Unbuildable(f"{sys.platform} is not supported yet")
        torch = find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            raise Unbuildable("torch, whose headers it needs, is missing; install it, or drop --no-build-isolation")
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        # one folder for developers, kept for quick rebuilds; elsewhere the folder of this build
        build = ROOT / "build" / "editable" if self.inplace else Path(self.build_temp).resolve()
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "DIFNET_KERNELS_TORCH": torch.submodule_search_locations[0],
            "DIFNET_KERNELS_OUTPUT": build / "library",
        }
        if (archs := os.environ.get("DIFNET_KERNELS_CUDA_ARCHS")) is not None:  # empty: without CUDA
            settings["DIFNET_KERNELS_CUDA_ARCHS"] = archs
        defines = [f"-D{name}={value}" for name, value in settings.items()]
        configured = subprocess.run(
            [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *defines], text=True, capture_output=True, check=False
        )
        sys.stdout.write(configured.stdout)
        sys.stderr.write(configured.stderr)
        if configured.returncode != 0:
            shutil.rmtree(build, ignore_errors=True)  # CMake would remember a compiler that does not work
            raise Unbuildable(first_error(configured.stderr))
        # from here on a failure is a defect of the sources, and is not hidden
        subprocess.run([cmake, "--build", build], check=True)
        shutil.copy2(build / "library" / LIBRARY, package / LIBRARY)
        return [line[3:] for line in configured.stdout.splitlines() if line.startswith(NOTES)]

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "difnet_kernels"
        return [str(package / name) for name in (LIBRARY, REPORT) if (package / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {built: str(ROOT / "difnet_kernels" / Path(built).name) for built in self.get_outputs()}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in names them


# what CMake says about the build that a user may want to know
NOTES = ("-- compiler: ", "-- instructions: ", "-- CUDA: ")


def find_tool(name: str) -> str:
    """A build tool beside this Python (its folder need not be on PATH), or anywhere on PATH."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise Unbuildable(f"{name} was not found; `pip install {name}`, or drop --no-build-isolation")
    return found


def first_error(log: str) -> str:
    """The text of CMake's first error, on one line."""
    block = log[log.find("CMake Error") :].splitlines()[1:]
    text = []
    for line in block:
        if line and not line.startswith("  "):
            break
        text.append(line.strip())
    return " ".join(filter(None, text)) or "CMake could not configure the build"


class PlatformWheel(bdist_wheel):
    """The library knows no Python, so one wheel serves every version; without the library, every platform too."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        compiled = (Path(self.bdist_dir) / "difnet_kernels" / LIBRARY).exists()
        return "py3", "none", platform if compiled else "any"


setup(
    ext_modules=[Extension("difnet_kernels.libdifnet_kernels", sources=[])],  # so that setuptools asks for CMakeBuild
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
