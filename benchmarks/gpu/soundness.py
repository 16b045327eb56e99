"""Memory, races and order, walks and Ψ: NaN in every fresh buffer, guard bands around every output, repeats, an image alone
and in a batch, two streams at once, graphs that meet new inputs, offsets past 2³¹; and compute-sanitizer if it is there.

Every check is a process of its own, because an illegal access ends its process.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu.level import Level
from benchmarks.gpu.ours import calls
from benchmarks.gpu.processes import Job, verdicts
from benchmarks.gpu.stage import BACKEND, Report, parser
from benchmarks.inputs import make_inputs
from benchmarks.replay import captured

PROBLEMS = (
    Case("ragged", 2, 613, 64, 21, walks=2),
    Case("tiny", 3, 7, 3, 5, walks=2),
    Case("many_classes", 1, 301, 16, 150, walks=1),
    Case("wide", 1, 257, 200, 21, walks=1),
)
# (channels, side, grid, D): an image, a ragged chunk of channels, windows that overlap, outputs larger than inputs
LEVELS = ((3, 45, 16, 64), (40, 45, 16, 64), (256, 17, 16, 200), (70, 5, 9, 64))
DEVICE = "cuda"
GUARD = 4096
REPEATS = 250
FAR_GIB = 40


@contextmanager
def poisoned() -> Iterator[None]:
    """Every torch.empty holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def levels(batch: int = 2, fresh: Callable[..., Tensor] = torch.empty) -> Iterator[tuple[str, Level]]:
    for channels, side, grid, embed in LEVELS:
        for dtype, last in ((torch.float32, True), (torch.bfloat16, False)):
            level = Level.draw(
                batch,
                channels,
                side,
                grid,
                embed,
                dtype,
                channels_last=last,
                training=True,
                fresh=fresh,
                device=DEVICE,
            )
            yield f"{channels} x {side}² -> {grid}², {dtype}", level


def poison() -> None:
    """A fresh buffer that is read before it is written shows: the results are the same bits as without."""
    for case in PROBLEMS:
        call = calls(make_inputs(case, "network", torch.float32, DEVICE), "high")["forward+backward"]
        clean = [x.clone() for x in call()]
        with poisoned():
            made = call()
        assert all(x.isfinite().all() for x in clean), f"{case}: not finite"
        assert same(clean, made), f"{case}: a fresh buffer was read"


def psi_poison() -> None:
    for name, level in levels():
        clean = [x.clone() for x in level.both()]
        for output in level.both():
            output.fill_(float("nan") if output.is_floating_point() else -1)
        with poisoned():
            made = level.both()
        assert all(x.isfinite().all() for x in clean), f"{name}: not finite"
        assert same(clean, made), f"{name}: a fresh buffer was read, or an output not written"


class Guards:
    """Buffers inside larger ones: nothing around them may be written."""

    def __init__(self) -> None:
        self.wholes: list[Tensor] = []

    def fresh(self, shape: torch.Size, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        numbers = torch.Size(shape if not isinstance(shape, int) else (shape,)).numel()
        whole = torch.full((numbers + 2 * GUARD,), 7, dtype=dtype, device=device)
        self.wholes.append(whole)
        return whole[GUARD : GUARD + numbers].view(shape)

    def check(self, name: str) -> None:
        for number, whole in enumerate(self.wholes):
            assert bool((whole[:GUARD] == 7).all()) and bool((whole[-GUARD:] == 7).all()), (
                f"{name}: output {number} was overrun"
            )


def guards() -> None:
    backend = importlib.import_module(f"difnet_kernels.backends.{BACKEND}")
    for case in PROBLEMS:
        inputs, kept = make_inputs(case, "network", torch.float32, DEVICE), Guards()
        seed, psi = inputs.seed.flatten(2), [p.flatten(2) for p in inputs.psi]
        B, K, N = seed.shape
        T = len(psi)
        shapes = {"states": (1, B, K, N), "walked": (T, B, N, K), "row_lse": (T, B, N), "grad_seed": (B, K, N),
                  "grad_mu": (T,), "grad_beta": (T,)}  # fmt: skip
        out = {name: kept.fresh(torch.Size(shape), device=seed.device) for name, shape in shapes.items()}
        grad_psi = [kept.fresh(p.shape, device=seed.device) for p in psi]
        given = (None, seed, psi, inputs.mu, inputs.beta)
        saved = {name: out[name] for name in ("walked", "row_lse")}
        backend.cascade_forward(*given, "high", states=out["states"], **saved)
        backend.cascade_backward(
            inputs.grad.flatten(2)[None], *given, saved["walked"], saved["row_lse"], "high", grad_state=None,
            grad_seed=out["grad_seed"], grad_psi=grad_psi, grad_mu=out["grad_mu"], grad_beta=out["grad_beta"],
        )  # fmt: skip
        kept.check(case.name)
        assert all(bool(x.isfinite().all()) for x in (*out.values(), *grad_psi)), f"{case}: not finite"


def psi_guards() -> None:
    kept = Guards()
    for name, level in levels(fresh=kept.fresh):
        level.both()
        kept.check(name)
        kept.wholes.clear()


def repeats() -> None:
    """A missing barrier shows once in many runs, and at a full card."""
    call = calls(make_inputs(Case("repeats", 16, 1681, 64, 21, walks=1), "network", torch.bfloat16, DEVICE), "high")
    first = [x.clone() for x in call["forward+backward"]()]
    for number in range(REPEATS):
        assert same(first, call["forward+backward"]()), f"repeat {number} differs"


def psi_repeats() -> None:
    """At sizes of training, whose gradients are summed in parts."""
    for channels, side, grid in ((3, 321, 41), (256, 81, 41)):
        level = Level.draw(16, channels, side, grid, 64, torch.bfloat16, channels_last=True, training=True)
        first = [x.clone() for x in level.both()]
        for number in range(REPEATS // 5):
            assert same(first, level.both()), f"{channels} channels: repeat {number} differs"


def alone() -> None:
    """An image by itself, whose rows several programs share, has the bits that it has in a batch that fills the card."""
    for dtype in (torch.float32, torch.bfloat16):
        batch = make_inputs(Case("alone", 16, 1681, 64, 21, walks=2), "network", dtype, DEVICE)
        first = replace(batch, seed=batch.seed[:1], psi=[p[:1] for p in batch.psi], grad=batch.grad[:1])
        together, apart = (calls(inputs, "high")["forward+backward"]()[:-2] for inputs in (batch, first))
        assert same([x[:1] for x in together], apart), f"{dtype}: other bits alone"


def other_stream() -> None:
    """Work queued on a side stream waits for its inputs there."""
    call = calls(make_inputs(PROBLEMS[0], "network", torch.float32, DEVICE), "high")["forward+backward"]
    here = [x.clone() for x in call()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        there = [x.clone() for x in call()]
    torch.cuda.current_stream().wait_stream(side)
    assert same(here, there)


def two_streams() -> None:
    """Two cascades that run at the same time share nothing that they write."""
    inputs = [make_inputs(PROBLEMS[0], "network", torch.float32, DEVICE, salt=salt) for salt in (0, 1)]
    both = [calls(one, "high")["forward+backward"] for one in inputs]
    right = [[x.clone() for x in call()] for call in both]
    streams = [torch.cuda.Stream() for _ in both]
    torch.cuda.synchronize()
    for number in range(20):
        made = []
        for stream, call in zip(streams, both, strict=True):
            with torch.cuda.stream(stream):
                made.append(call())
        torch.cuda.synchronize()
        assert all(same(a, b) for a, b in zip(right, made, strict=True)), f"round {number} differs"


def new_inputs() -> None:
    """A captured graph reads its inputs, the gates too, when it is replayed."""
    inputs, other = (make_inputs(PROBLEMS[0], "network", torch.float32, DEVICE, salt=salt) for salt in (0, 1))
    call = calls(inputs, "high")["forward+backward"]
    graph, made = captured(call)
    for old, new in zip(inputs.differentiable, other.differentiable, strict=True):
        old.copy_(new)
    inputs.mu.mul_(0.5)
    graph.replay()
    assert same([x.clone() for x in made], call())


def numbers_for_gates() -> None:
    """μ and β as Python numbers are written on the device, so that a graph captures them too."""
    from difnet_kernels import cascaded_random_walk

    inputs = make_inputs(PROBLEMS[0], "network", torch.float32, DEVICE)
    gates = [0.25] * len(inputs.psi)

    def call() -> list[Tensor]:
        return [cascaded_random_walk(inputs.seed, inputs.psi, gates, gates, backend=BACKEND)]

    graph, made = captured(call)
    graph.replay()
    assert same([x.clone() for x in made], call())


def far() -> str | None:
    """Past 2³¹ numbers of ψ in a batch, its last image has the bits that it has by itself."""
    from difnet_kernels import cascaded_random_walk

    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < FAR_GIB:
        return f"not run: it takes about {FAR_GIB} GiB of the GPU, {free:.0f} are free"
    embed, nodes = 64, 1024
    images = 2**31 // (embed * nodes) + 2
    gates = torch.full((1,), 0.5, device="cuda")
    psi = torch.randn(images, embed, nodes, device="cuda", dtype=torch.bfloat16).mul_(0.35).requires_grad_()
    seed = torch.randn(images, 5, nodes, device="cuda", dtype=torch.bfloat16)
    found = []
    for part in (slice(None), slice(-1, None)):
        y = cascaded_random_walk(seed[part], [psi[part]], gates, gates, backend=BACKEND)
        grad = torch.autograd.grad(y, psi, torch.ones_like(y))[0]
        found.append([y.detach()[-1].clone(), grad[-1].clone()])
        del y, grad
    assert bool((found[0][0] != 0).any()) and same(*found), "other bits past 2³¹"
    return None


# each raises, or says why it could not be made
CHECKS: dict[str, Callable[[], str | None]] = {
    check.__name__: check
    for check in (
        poison, guards, psi_poison, psi_guards, other_stream, two_streams, new_inputs, numbers_for_gates, alone, repeats,
        psi_repeats, far,
    )
}  # fmt: skip
# memcheck sees what leaves an allocation: each tensor must be one, and not a part of a larger block
SANITIZED = (("memcheck", "poison"), ("memcheck", "psi_poison"), ("racecheck", "guards"), ("racecheck", "psi_guards"))
WITHOUT_A_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def jobs(report: Report) -> list[Job]:
    """The checks, then the sanitizer's, which are slower."""
    made = []
    for name in CHECKS:
        made.append(Job({"check": name}, command(report, name), report.logs / f"{name}.log"))
    sanitizer = shutil.which("compute-sanitizer")
    for tool, name in SANITIZED:
        about = {"check": f"{tool} of {name}"}
        if sanitizer is None:
            report.add(**about, passed=None, reason="not run: compute-sanitizer is not installed")
            continue
        whole = [sanitizer, "--tool", tool, "--error-exitcode", "9", *command(report, name)]
        made.append(Job(about, whole, report.logs / f"{tool}_{name}.log", WITHOUT_A_CACHE))
    return made


def command(report: Report, name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.soundness", "--out", str(report.path), "--only", name]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", choices=CHECKS, help="run this check in this process and nothing else")
    options = made.parse_args()
    if options.only is not None:
        reason = CHECKS[options.only]()
        torch.cuda.synchronize()
        print(json.dumps({"passed": None, "reason": reason} if reason else {"passed": True}))
        return 0
    report = Report(options.out, options.seconds)
    return report.done(verdicts(report, jobs(report)))


if __name__ == "__main__":
    raise SystemExit(main())
