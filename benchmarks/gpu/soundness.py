"""Memory, races and order: NaN in every fresh buffer, guard bands around every output, 250 repeats, an image alone and in a
batch, and compute-sanitizer if it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu.graphs import calls
from benchmarks.gpu.stage import Report, first_line, parser
from benchmarks.inputs import make_inputs

PROBLEMS = (
    Case("ragged", 2, 613, 64, 21, walks=2),
    Case("tiny", 3, 7, 3, 5, walks=2),
    Case("many_classes", 1, 301, 16, 150, walks=1),
    Case("wide", 1, 257, 200, 21, walks=1),
)
GUARD = 4096


def poison() -> None:
    """Every torch.empty holds NaN, and the results are the same bits as without."""
    for case in PROBLEMS:
        call = calls(make_inputs(case, "network", torch.float32, "cuda"), "high")["forward+backward"]
        clean = [x.clone() for x in call()]
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[assignment]
        try:
            poisoned = call()
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(x.isfinite().all() for x in clean), f"{case}: not finite"
        assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True)), f"{case}: a fresh buffer was read"


def guards() -> None:
    """Outputs inside larger buffers, straight at the backend: nothing around them is written."""
    from difnet_kernels.backends import triton as backend

    def guarded(like: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.full((like.numel() + 2 * GUARD,), 7.0, dtype=like.dtype, device=like.device)
        return whole, whole[GUARD : GUARD + like.numel()].view(like.shape)

    for case in PROBLEMS:
        inputs = make_inputs(case, "network", torch.float32, "cuda")
        seed, psi = inputs.seed.flatten(2), [p.flatten(2) for p in inputs.psi]
        B, K, N = seed.shape
        T = len(psi)
        shapes = {"states": (1, B, K, N), "walked": (T, B, N, K), "row_lse": (T, B, N), "grad_seed": (B, K, N),
                  "grad_mu": (T,), "grad_beta": (T,)}  # fmt: skip
        kept = {name: guarded(seed.new_empty(shape)) for name, shape in shapes.items()}
        kept |= {f"grad_psi{t}": guarded(p.new_empty(p.shape)) for t, p in enumerate(psi)}
        out = {name: view for name, (_, view) in kept.items()}
        given = (None, seed, psi, inputs.mu, inputs.beta)
        saved = {name: out[name] for name in ("walked", "row_lse")}
        backend.cascade_forward(*given, "high", states=out["states"], **saved)
        backend.cascade_backward(
            inputs.grad.flatten(2)[None], *given, saved["walked"], saved["row_lse"], "high", grad_state=None,
            grad_seed=out["grad_seed"], grad_psi=[out[f"grad_psi{t}"] for t in range(T)], grad_mu=out["grad_mu"],
            grad_beta=out["grad_beta"],
        )  # fmt: skip
        for name, (whole, view) in kept.items():
            assert bool((whole[:GUARD] == 7.0).all()) and bool((whole[-GUARD:] == 7.0).all()), (
                f"{case}: {name} was overrun"
            )
            assert bool(view.isfinite().all()), f"{case}: {name} is not finite"


def repeats(times: int = 250) -> None:
    """A missing barrier shows once in many runs, and at a full card."""
    call = calls(make_inputs(Case("repeats", 16, 1681, 64, 21, walks=1), "network", torch.bfloat16, "cuda"), "high")
    first = [x.clone() for x in call["forward+backward"]()]
    for number in range(times):
        again = call["forward+backward"]()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"repeat {number} differs"


def alone() -> None:
    """An image by itself, whose rows several programs share, has the bits that it has in a batch that fills the card."""
    for dtype in (torch.float32, torch.bfloat16):
        batch = make_inputs(Case("alone", 16, 1681, 64, 21, walks=2), "network", dtype, "cuda")
        first = replace(batch, seed=batch.seed[:1], psi=[p[:1] for p in batch.psi], grad=batch.grad[:1])
        together, apart = (calls(inputs, "high")["forward+backward"]()[:-2] for inputs in (batch, first))
        assert all(torch.equal(a[:1], b) for a, b in zip(together, apart, strict=True)), f"{dtype}: other bits alone"


def other_stream() -> None:
    """Work queued on a side stream waits for its inputs there."""
    call = calls(make_inputs(PROBLEMS[0], "network", torch.float32, "cuda"), "high")["forward+backward"]
    here = [x.clone() for x in call()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        there = [x.clone() for x in call()]
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


CHECKS: dict[str, Callable[[], None]] = {
    "poison": poison,
    "guards": guards,
    "other_stream": other_stream,
    "alone": alone,
    "repeats": repeats,
}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", help="run these checks in this process and nothing else")
    options = made.parse_args()
    if options.only is not None:
        for name in options.only:
            CHECKS[name]()
        return 0
    report = Report(options.out, options.seconds)
    failed = 0
    for name, check in CHECKS.items():
        try:
            check()
            report.add(check=name, passed=True)
        except Exception as error:
            failed += 1
            report.add(check=name, passed=False, reason=first_line(error))
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None:
            report.add(check=tool, passed=None, reason="not run: compute-sanitizer is not installed")
            continue
        if report.time_is_up:
            report.left_out(check=tool, passed=None)
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.soundness",
                   "--out", str(options.out), "--only", "guards"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(10.0, options.seconds / 2))
            failed += done.returncode != 0
            report.add(check=tool, passed=done.returncode == 0, reason=done.stdout[-600:] if done.returncode else "")
        except subprocess.TimeoutExpired:
            report.left_out(check=tool, passed=None)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
