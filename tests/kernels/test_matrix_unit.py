"""The matrix unit: its model against an independent definition, the unit against the model bit for bit where there is one, and
how many operations a walk gives it. The walks themselves are tested by every test of this folder, in a process whose
DIFNET_KERNELS_ISA names a set with a unit or a model (test_processes.py, and CI)."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difnet_kernels.backends.native import instruction_sets

ROOT = Path(__file__).parents[2]
KINDS = ("normal", "huge", "tiny", "denormal", "wide", "cancelling", "nonfinite")


def _registers(kind: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (n, 16, 16) and operands (n, 16, 32), whose second ones are [pair][column][number of the pair]."""
    chance = torch.Generator().manual_seed(KINDS.index(kind))

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=chance, dtype=torch.float64)
        if kind == "huge":
            x = x * 2.0**62
        elif kind == "tiny":
            x = x * 2.0**-61
        elif kind == "denormal":
            x = x * 2.0 ** -torch.randint(60, 133, shape, generator=chance).double()
        elif kind == "wide":
            x = x * 2.0 ** torch.randint(-60, 60, shape, generator=chance).double()
        return x.float()

    sums, a, b = draw(count, 16, 16), draw(count, 16, 32).bfloat16(), draw(count, 16, 32).bfloat16()
    if kind == "cancelling":  # what is left is far below the terms
        b[:, :, 1::2] = b[:, :, ::2] * (1 + 2.0**-7)
        a[:, :, 1::2] = -a[:, :, ::2]
        sums *= 2.0**-20
    if kind == "tiny":
        sums *= 2.0**-61
    if kind == "nonfinite":
        for x in (sums, a, b):
            places = torch.randint(x[0].numel(), (count, 3), generator=chance)
            bad = torch.tensor([math.inf, -math.inf, math.nan]).to(x.dtype)
            x.view(count, -1).scatter_(1, places, bad.expand(count, 3))
    return sums, a, b


def _rounded(x: Fraction) -> Fraction:
    """To 24 digits, ties to even, however small; what is then below the smallest normal number is zero."""
    if x == 0:
        return x
    exponent = 0
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    size = round(size / unit) * unit
    return Fraction(0) if size < Fraction(2) ** -126 else size if x > 0 else -size


def _plain(x: float) -> Fraction:
    return Fraction(0) if abs(x) < 2.0**-126 else Fraction(x)


def _defined(sums: Tensor, a: Tensor, b: Tensor, m: int, n: int) -> float:
    """One sum by the definition, in rational numbers."""
    halves = []
    for number in range(2):
        half = Fraction(0)
        for k in range(16):
            half = _rounded(half + _plain(a[m, 2 * k + number].item()) * _plain(b[k, 2 * n + number].item()))
        halves.append(half)
    total = _rounded(_plain(sums[m, n].item()) + _rounded(halves[0] + halves[1]))
    return float(total) if abs(total) < Fraction(2) ** 128 else math.copysign(math.inf, total)


def _multiplied(name: str, sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    out = sums.clone()
    torch.ops.difnet_kernels.matrix_unit_multiply(name, out, a, b)
    return out


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_product_is_the_definition(native: str, unit: str, kind: str) -> None:
    sums, a, b = _registers(kind, 2)
    ours = _multiplied(unit, sums, a, b)
    compared = 0
    for n in range(2):
        for at in range(0, 256, 5):
            m, column = divmod(at, 16)
            if not ours[n, m, column].isfinite():  # a partial sum has left the range: the truth has no such end
                assert kind == "huge"
                continue
            compared += 1
            assert ours[n, m, column].item() == _defined(sums[n], a[n], b[n], m, column), (n, m, column)
    assert compared > 20
    assert (ours != sums).any()


@pytest.mark.smoke
def test_a_product_spreads_nan_and_infinity(native: str, unit: str) -> None:
    sums, a, b = _registers("nonfinite", 20)
    ours = _multiplied(unit, sums, a, b)
    columns = b.view(20, 16, 16, 2).transpose(2, 3).reshape(20, 32, 16).double()
    truth = sums.double() + a.double() @ columns
    assert torch.equal(ours.isnan(), truth.isnan()) and truth.isnan().any()
    assert torch.equal(ours.isinf(), truth.isinf()) and truth.isinf().any()


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_models_agree_bit_for_bit_in_any_mode(native: str, unit: str, kind: str) -> None:
    sums, a, b = _registers(kind, 300)
    expected = _multiplied("model", sums, a, b)
    assert torch.set_flush_denormal(True)
    try:
        flushed = _multiplied(unit, sums, a, b)
    finally:
        torch.set_flush_denormal(False)
    for ours in (_multiplied(unit, sums, a, b), flushed):
        nan = expected.isnan()
        assert torch.equal(nan, ours.isnan())
        assert torch.equal(expected.view(torch.int32)[~nan], ours.view(torch.int32)[~nan])


def test_what_has_no_unit_is_refused(native: str) -> None:
    sums, a, b = _registers("normal", 1)
    for name in ("baseline", "amx3"):
        with pytest.raises(RuntimeError, match=f"instruction_set must be one that runs here.*; got {name}"):
            _multiplied(name, sums, a, b)
    with pytest.raises(RuntimeError, match=r"a must be \(n, 16, 32\)"):
        _multiplied("model", sums, a[:, :8], b)


# products of registers for 64 x 64 nodes, D = 64, K = 21: S, and one direction of P y; h y and y h, of P h, of T psi
PLAN = {
    "fp32": (6 * 32, 6 * 16, 2 * 6 * 16, 6 * 16, 3 * 32),
    "bf16": (32, 16, 2 * 3 * 16, 16, 32),
    "fp16": (4 * 32, 3 * 16, 2 * 3 * 16, 3 * 16, 3 * 32),
    "medium": (3 * 32, 3 * 16, 2 * 3 * 16, 3 * 16, 3 * 32),
}
COUNTED = """
import sys, torch
from tests.support.cases import DTYPES, Case, make
from tests.support.truth import both, forward
counts = lambda: torch.tensor(torch.ops.difnet_kernels.matrix_unit_counts("model"))
for name in sys.argv[1:]:
    inputs, asked = make(Case(1, (128,), 64, 21, 1, "smooth"), DTYPES.get(name, torch.float32)), ("cpu", "high")
    if name == "medium":
        asked = ("cpu", "medium")
    start = counts(); forward(inputs, *asked); middle = counts(); both(inputs, *asked)
    print(*(middle - start).tolist(), *(counts() - 2 * middle + start).tolist())
"""


def test_a_walk_gives_the_unit_what_is_planned(native: str) -> None:
    """Two tiles: two diagonal steps, which serve one direction, and one step that serves both."""
    environment = {**os.environ, "DIFNET_KERNELS_ISA": "model"}
    command = [sys.executable, "-c", COUNTED, *PLAN]
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=100)
    for line, (S, Py, hy, Ph, Tpsi) in zip(told.stdout.splitlines(), PLAN.values(), strict=True):
        loads, products, _, loads_back, products_back, _ = map(int, line.split())
        assert products == 3 * S + 4 * Py
        assert products_back == 3 * (S + hy) + 4 * (Ph + Tpsi)
        assert (loads, loads_back) == (products, products_back)  # two of each operand for four products


# of Ψ, for 64 pixels, 64 feature channels and D = 64: z, the gradients of features and of weights
PSI_PLAN = {"fp32": (6 * 32, 6 * 32, 6 * 32), "bf16": (3 * 32, 3 * 32, 3 * 32), "fp16": (5 * 32, 3 * 32, 5 * 32)}
COUNTED_PSI = """
import sys, torch
from tests.kernels.test_projection_kernels import backward, draw, forward
from tests.support.projections import Shape
counts = lambda: torch.tensor(torch.ops.difnet_kernels.matrix_unit_counts("model"))
for name in sys.argv[1:]:
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        problem = draw(Shape(1, 256, 64, (1, 4, 64), (1, 1, 1)), name, statistics=False)
        problem.features = problem.features.contiguous(memory_format=layout)
        start = counts(); made = forward("cpu", problem); middle = counts()
        backward("cpu", problem, made, "features"); then = counts(); backward("cpu", problem, made, "weight")
        print(*(int(x[1]) for x in (middle - start, then - middle, counts() - then)))
"""


def test_psi_gives_the_unit_what_is_planned(native: str) -> None:
    """Four tiles of pixels and four blocks of channels, in both orders of memory."""
    environment = {**os.environ, "DIFNET_KERNELS_ISA": "model"}
    command = [sys.executable, "-c", COUNTED_PSI, *PSI_PLAN]
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=100)
    lines = [tuple(map(int, line.split())) for line in told.stdout.splitlines()]
    planned = [tuple(16 * products for products in plan) for plan in PSI_PLAN.values() for _ in range(2)]
    assert lines == planned


def test_the_loop_of_the_roofline_multiplies(native: str) -> None:
    before = torch.ops.difnet_kernels.matrix_unit_counts("model")[1]
    threads = torch.ops.difnet_kernels.matrix_unit_spin("model", 3)
    assert threads == torch.get_num_threads()
    assert torch.ops.difnet_kernels.matrix_unit_counts("model")[1] - before == 4 * 3 * threads


BESIDE = """
import os, sys, torch
from torch.nn.functional import scaled_dot_product_attention as attention
from tests.support.cases import Case, make
from tests.support.truth import both
torch.set_num_threads(2)
inputs = make(Case(1, (300,), 64, 21, 2, "photo"))
x, y = torch.randn(512, 512).bfloat16(), torch.randn(1, 2, 256, 64).bfloat16()
neighbours = lambda: [x @ x, attention(y, y, y), torch.nn.functional.linear(x, x, x[0])]
alone = [*neighbours(), *both(inputs, "cpu").tensors()]
def check():
    for _ in range(3):
        for mine, yours in zip([*neighbours(), *both(inputs, "cpu").tensors(), *neighbours()], [*alone, *alone[:3]]):
            assert torch.equal(mine, yours)
check()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # the threads of the parent are not there
    ours = both(inputs, "cpu").tensors()
    os._exit(int(not all(torch.equal(mine, yours) for mine, yours in zip(ours, alone[3:]))))
assert os.waitpid(child, 0)[1] == 0
check()
print("alike")
"""


def test_neighbours_on_the_unit_do_not_notice_and_are_not_noticed(native: str) -> None:
    """oneDNN's bf16 products and attention configure the same unit in the same threads, before, between and after our calls;
    and a child of a fork has to configure it itself. Without a unit the model stands in for our half of this."""
    unit = next(name for name in ("amx", "amx_model", "model") if name in instruction_sets())
    environment = {**os.environ, "DIFNET_KERNELS_ISA": unit}
    told = subprocess.run(
        [sys.executable, "-c", BESIDE],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert told.stdout.strip() == "alike"


REFUSED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None) == 0
from difnet_kernels.backends import native
print("amx" in native.instruction_sets(), native.instruction_set())
"""


def test_a_signal_stack_that_is_too_small_leaves_the_other_sets(native: str, amx: str) -> None:
    """The system refuses the unit then; its first instruction would kill the process."""
    environment = {name: value for name, value in os.environ.items() if name != "DIFNET_KERNELS_ISA"}
    told = subprocess.run(
        [sys.executable, "-c", REFUSED],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.stdout.split() == ["False", "avx512"]
