"""Mistakes that such kernels are known to contain, each as an edit of the C++ sources and the truth that must catch it.

All edits go into one copy of the sources, each behind a switch, so that one build holds every fault and an environment
variable of that build picks one. The library that is shipped knows nothing of this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.support.forked import Ended, Pytest

ROOT = Path(__file__).parents[2]
FORWARD, BACKWARD, GATES = "cpu/walk/forward_tile.h", "cpu/walk/backward_tile.h", "cpu/walk/gates.h"
EXPONENTIAL, BIAS, LOGITS = "cpu/exponential.h", "cpu/walk/bias.h", "cpu/walk/logits.h"
FAR = "cpu/walk/far.h"
PROJECTION_FORWARD, PROJECTION_BACKWARD = "cpu/projection/forward_tile.h", "cpu/projection/backward_tile.h"
# what drops a step that comes too late
LATE = "claimed > done || !first.claimed.compare_exchange_strong(claimed, done + 1, std::memory_order_acq_rel)"


@dataclass(frozen=True)
class Fault:
    """In `file`, the expression `good` becomes `bad`; then `truth` (a test file, or one test of it) must fail."""

    name: str
    file: str
    good: str
    bad: str
    truth: str
    around: str = ""  # the line's text around `good`, with {} for it, where `good` alone is not unique


FAULTS = (
    Fault("padding votes in the row sum", FORWARD, "nodes", "kTile", "forward", "n < {}; ++n) narrow(Real(1)"),
    Fault("the diagonal tile counts twice", FORWARD, "a == b ? 1 : 2", "2", "forward"),
    Fault("log2 where ln belongs, in row_lse", FORWARD, "__builtin_logf(total)", "__builtin_log2f(total)", "backward"),
    Fault("exp2 where exp belongs", EXPONENTIAL, "x * B::kPerLn2", "x", "forward", "{} + round, n"),
    Fault("a wrong coefficient in exp", EXPONENTIAL, "0.166675749f", "0.16f", "forward"),
    Fault("a maximum is never raised", FORWARD, "tile.highest > kSlack<Real>", "false", "extremes"),
    Fault("a raised maximum leaves its sums", FORWARD, "factor", "Real(1)", "extremes", "*= {};"),
    Fault("only rows raise their maximum", FORWARD, "to > rows.shift[n] + kSlack<Real>", "false && to > 0", "extremes"),
    Fault("weights are skipped too soon", FORWARD, "negligible", "-Real(3)", "forward", "(most) > {})) {{"),
    Fault("skipped tiles hide NaN", FORWARD, "walk.finite[a] && walk.finite[b]", "true", "nonfinite"),
    Fault("the seed is forgotten", GATES, "(1 - mu)", "Real(0)", "forward", "+ {} * seed;  // (W3)"),
    Fault("delta is missing", GATES, "grads[at] * w", "Real(0)", "backward"),
    Fault("the transpose term of T is missing", BACKWARD, "low", "V{}", "backward", "load<V>(T + c * NR) + {})"),
    Fault("P_ij and P_ji are swapped", BACKWARD, "over.P_ji", "over.P_ij", "backward"),
    Fault("padding pulls at the diagonal", BACKWARD, "c >= nodes", "false", "backward", "if ({}) continue;"),
    Fault("gradients skip too soon", BACKWARD, "-kNegligible<Real> * kLn2<Real>", "-Real(3)", "backward"),
    Fault(
        "skipped gradients hide NaN", BACKWARD, "walk.finite[a] && walk.finite[b]", "true",
        "nonfinite.py::test_a_bad_gradient_reaches_all_it_touches",
    ),
    Fault("one polynomial for logits of any size", FORWARD, "squared_norm <= kInRange", "true", "extremes"),
    Fault("tiles are far too soon", FAR, "apart", "3 * apart", "forward.py::test_the_cascade_is_right", "(norms - {}) / 2"),
    Fault("tiles are far in one direction alone", FAR, "column < negligible", "true", "forward.py::test_the_cascade_is_right"),
    Fault(
        "tiles are far whatever their bias", FAR, "bias_a", "Real(0)", "bias.py::test_a_walk_with_a_bias_is_right",
        "largest + {} - least_shift",
    ),
    Fault("gradients lose the rest of row_lse", EXPONENTIAL, "polynomial(-rest)", "broadcast<V>(Real(1))", "backward"),
    Fault(
        "weights fade through the denormal numbers", EXPONENTIAL, "x.rounded > limit", "x.rounded > limit - Real(75)",
        "float_mode.py::test_no_result_is_denormal",
    ),
    Fault(
        "subnormal halves are scaled", "cpu/convert.h", "float(int32_t(magnitude)) * 0x1p-24f",
        "__builtin_bit_cast(float, magnitude << 13) * 0x1p112f", "float_mode.py::test_subnormal_halves_keep_their_value",
    ),
    Fault(
        "tasks run in the mode of their thread", "cpu/float_mode.h",
        "(caller_ & kFlags) | kMasks | kFlushToZero | kDenormalsAreZero", "caller_",
        "float_mode.py::test_the_mode_of_the_caller_changes_no_bit",
    ),
    Fault(
        "the caller loses its mode", "cpu/float_mode.h", "caller_ & ~kFlags", "kMasks | kFlushToZero",
        "float_mode.py::test_the_caller_keeps_its_mode",
    ),
    Fault(
        "a step that comes too late is added, too", "cpu/schedule.h",
        LATE, f"({LATE}) && (there ? self.steps.commit(self.walks[image], a, b, self.scratch) : void(), true)",
        "determinism.py::test_interrupted_workers_change_no_bit",
    ),
    Fault("a bias loses its integer", BIAS, "m", "zero", "bias", "fits ? {} : without"),
    Fault("a bias loses what is left of its integer", BIAS, "(b - m * B::kLn2High) - m * B::kLn2Low", "zero", "bias"),
    Fault("padding looks like a column without bias", BIAS, "-infinity", "Real(0)", "bias", "* kTile + n] : {};"),
    Fault(
        "a row with a bias starts at a sum of another order", BIAS, "rest + rest", "V{}",
        "extremes.py::test_huge_logits_with_a_bias",
    ),
    Fault("rows without their own column start there", BIAS, "walk.heaviest < 0", "true", "bias", "if ({}) return;"),
    Fault("a row keeps its own bias in row_lse", FORWARD, "double(rest)", "0.0", "bias", "- {});"),
    Fault("a row keeps its own bias in its gradients", BACKWARD, "-load<V>(walk.tile_bias[tile].rest + n)", "V{}", "bias"),
    Fault(
        "a bias skips too soon", LOGITS, "broadcast<V>(rows_j.bias->whole[j + c])", "V{}", "bias", "of_i[half] += {};"
    ),
    Fault(
        "an even bias skips too soon", LOGITS, "broadcast<V>(rows_j.bias->most)", "V{}",
        "bias_properties.py::test_a_constant_changes_nothing_and_shifts_lse",
    ),
    Fault(
        "large logits lose their bias", LOGITS, "broadcast<V>(rows_j.bias->whole[j + c])", "V{}", "bias", "below_i += {};"
    ),
    Fault("the gradient of row_lse is lost", BACKWARD, "rest[n]", "Real(0)", "bias", "walk.grad_row_lse[first + n] * {};"),
    Fault("the diagonal misses the gradient of row_lse", BACKWARD, "gamma", "Real(0)", "bias", "2 * ({} - walk.off_diagonal"),
    Fault("the gradient of a bias keeps that of row_lse", BACKWARD, "gamma", "Real(0)", "bias", "+ diagonal - {};"),
    Fault("the gradient of a bias misses columns", BACKWARD, "!same", "false", "bias", "c < kMR && {}; ++c"),
    Fault("d mu misses beta", GATES, "double(beta)", "1.0", "backward", "{} * grad_mu"),
    Fault("strides are ignored in full tiles", "cpu/convert.h", "field.node_stride == 1", "true", "layouts"),
    Fault(
        "offsets of images are 32-bit", "tensors.h",
        "image * tensor.stride(0) * int64_t(tensor.element_size())",
        "int32_t(uint32_t(image * tensor.stride(0) * int64_t(tensor.element_size())))",
        "sizes.py::test_strides_beyond_int32",
    ),
    Fault(
        "the last of equal pixels wins", PROJECTION_FORWARD, "young > old", "young >= old",
        "projection_kernels.py::test_the_first_of_equal_pixels_wins",
    ),
    Fault("a negative slope seeks the maximum", PROJECTION_FORWARD, "-w", "w", "projection_kernels", "? {} : w;"),
    Fault(
        "NaN never wins", PROJECTION_FORWARD, "young != young", "V{} != V{}",
        "projection_kernels.py::test_nan_wins_its_windows_and_no_other",
    ),
    Fault("shared rows count twice in the moments", PROJECTION_FORWARD, "run.y >= own.to[1]", "false", "projection_kernels"),
    Fault(
        "shared columns count twice in the moments", PROJECTION_FORWARD, "own.to[2] - run.x < run.length", "false",
        "projection_kernels",
    ),
    Fault(
        "moments are summed about zero", PROJECTION_FORWARD, "before > 0", "true",
        "projection_kernels.py::test_a_large_mean_leaves_the_variance",
    ),
    Fault(
        "a pixel misses its last window", PROJECTION_BACKWARD, "axis.pixels - 1", "0", "projection_kernels",
        "axis.windows + {}) /",
    ),
    Fault("the mean is not subtracted", PROJECTION_BACKWARD, "about[lane]", "Real(0)", "projection_kernels", "(to[lane] - {})"),
    Fault(
        "sums start from what memory holds", PROJECTION_BACKWARD, "!first", "true",
        "projection_kernels.py::test_what_is_not_wanted_changes_nothing", "P, P>(features + c * kTile, grad, count, {}, out",
    ),
    Fault(
        "rows are joined across gaps", "cpu/projection/tile.h", "volume.stride[1] != row", "false",
        "projection_kernels.py::test_strides_change_no_bit",
    ),
)  # fmt: skip
NAMED = re.compile(r"^DIFNET_ISA\((\w+), (\w+),", re.MULTILINE)  # a set, and the one that it extends
# read by every source of the copy; the library has one, set when it is loaded
SWITCH = "namespace difnet { extern int fault; }\n"
DEFINITION = """
#include <cstdlib>
int difnet::fault = std::getenv("DIFNET_FAULT") ? std::atoi(std::getenv("DIFNET_FAULT")) : -1;
"""


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    count = text.count(old)
    assert count == 1, (
        f"{path.name} holds {old!r} {count} times, not once: the sources changed, adjust tests/support/faults.py"
    )
    path.write_text(text.replace(old, new))


def keep_what_runs(table: Path, used: str) -> None:
    """Of the instruction sets of isa.def the one in use, the one that it extends, and the baseline: others would be most
    of the build."""
    text = table.read_text()
    kept = {"baseline", used, dict(NAMED.findall(text))[used]}
    rows = text.splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not (named := NAMED.match(row)) or named[1] in kept))


def plant(sources: Path) -> None:
    """Every fault into a copy of csrc, behind its number."""
    for number, fault in enumerate(FAULTS):
        around = fault.around or "{}"
        switched = f"(::difnet::fault == {number} ? ({fault.bad}) : ({fault.good}))"
        _edit(sources / fault.file, around.format(fault.good), around.format(switched))
    (sources / "fault.h").write_text(SWITCH)
    with (sources / "library.cpp").open("a") as library:
        library.write(DEFINITION)


def build(folder: Path, used: str) -> None:
    """A copy of the package and its tests in `folder`, with a library that holds every fault, for the instructions in use."""
    for part in ("csrc", "difnet_kernels", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy2(ROOT / file, folder / file)
    keep_what_runs(folder / "csrc" / "cpu" / "isa.def", used)
    plant(folder / "csrc")
    scripts = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    settings = [
        f"-DDIFNET_KERNELS_OUTPUT={folder / 'difnet_kernels'}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DDIFNET_KERNELS_CUDA_ARCHS=",
        f"-DCMAKE_CXX_FLAGS=-include {folder / 'csrc' / 'fault.h'}",
    ]
    for command in (["cmake", "-S", ".", "-B", "build", "-G", "Ninja", *settings], ["cmake", "--build", "build"]):
        program = shutil.which(command[0], path=scripts)
        assert program is not None, f"{command[0]} is needed to build the faults: pip install cmake ninja"
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, env={**os.environ, "PATH": scripts}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def judge(pytest: Pytest, fault: Fault | None) -> Ended:
    """The truth that `fault` offends, or all of these truths without any fault, in a process of its own."""
    truths = [fault.truth] if fault else sorted({other.truth for other in FAULTS})
    files = [f"tests/kernels/test_{truth if '.py' in truth else truth + '.py'}" for truth in truths]
    chosen = [] if fault and "::" in fault.truth else ["-m", "smoke"]
    command = ["-q", "-x", "--tb=line", "--backends", "cpu", "-p", "no:cacheprovider", *chosen, *files]
    return pytest.run(command, {"DIFNET_FAULT": str(FAULTS.index(fault)) if fault else "-1"})
