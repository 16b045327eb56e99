"""Time and peak memory of the same cascade done three ways, each in a process of its own: no peak hides another.

`compare` is the parent; `python -m models.demo.measure METHOD FOLDER` is the child.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import reference
from models.demo.progress import Progress
from models.networks.diffusion import dense_steps

ROOT = Path(__file__).resolve().parents[2]
Walks = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], Tensor]


def ours(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
    state = cascaded_random_walk(seed, psi, mu, beta)
    assert isinstance(state, Tensor)  # not asked for all steps
    return state


def dense(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
    """Plain torch, one N x N transition matrix at a time."""
    return dense_steps(seed, psi, mu, beta)[-1]


def sdpa(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
    """torch's fused attention with query = key. It wants as many value as key channels: zeros change nothing."""
    classes = seed.shape[1]
    source = seed.flatten(2).mT.unsqueeze(1)
    state = source
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the other choice on a CPU is the dense one
        for p, m, b in zip(psi, mu, beta, strict=True):
            nodes = p.flatten(2).mT.unsqueeze(1)
            width = -(-max(nodes.shape[-1], classes) // 16) * 16  # multiples of 16 run faster than the bare width
            nodes = F.pad(nodes, (0, width - nodes.shape[-1]))
            values = F.pad(state, (0, width - classes))
            walked = F.scaled_dot_product_attention(nodes, nodes, values, scale=1.0)[..., :classes]
            state = reference.step(walked, source, state, m, b)
    return state.squeeze(1).mT.reshape(seed.shape)


METHODS: dict[str, Walks] = {"ours": ours, "dense": dense, "sdpa": sdpa}


def tolerance(psi: Sequence[Tensor]) -> float:
    """Largest difference, relative to max |y|, that rounding explains between two fp32 cascades.

    Rounding a logit to fp32 moves it by a few 2⁻²⁴ of the squared norms; a method is within half of this of the truth.
    """
    largest = max(p.square().sum(1).max().item() for p in psi)
    return 2 * len(psi) * (4 * 2.0**-24 * largest + 2e-6)


def compare(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor, progress: Progress) -> dict:
    """Runs every method on the problem, forward only, and checks that all agree before a number is returned.

    Returns per method seconds (median), runs, extra_mib (growth of the process, None if the system does not say) and
    difference (from ours, relative to max |y|), or for a peer that failed not_measured, with the reason.
    Raises RuntimeError if ours cannot run, or if a peer differs from it by more than `tolerance`.
    """
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problem = {"seed": seed, "psi": list(psi), "mu": mu, "beta": beta}
        torch.save(problem, folder / "problem.pt")
        for method in METHODS:
            command = [sys.executable, "-m", "models.demo.measure", method, name]
            with progress(f"time and memory: {method}"):
                child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if child.returncode == 0:
                results[method] = json.loads(child.stdout)
            elif method == "ours":
                raise RuntimeError(f"the cascade failed in a process of its own:\n{child.stderr}")
            else:  # a peer that runs out of memory is a result
                last = child.stderr.strip().splitlines()
                results[method] = {"not_measured": last[-1] if last else f"ended by signal {-child.returncode}"}
        truth = torch.load(folder / "ours.pt", weights_only=True)
        for method, result in results.items():
            if "not_measured" in result:
                continue
            other = torch.load(folder / f"{method}.pt", weights_only=True)
            result["difference"] = ((other - truth).abs().max() / truth.abs().max()).item()
            if not result["difference"] <= tolerance(psi):
                raise RuntimeError(
                    f"{method} and ours must agree within {tolerance(psi):.1e}; they differ by "
                    f"{result['difference']:.1e}. One of them is wrong here: run the tests, and report this line."
                )
    return results


def peak_bytes() -> int | None:
    """The largest resident memory of this process so far, None where the system does not say."""
    try:
        # not getrusage: there a child on Linux starts with the peak of its parent
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(method: str, folder: Path) -> dict:
    """Times `method` on the problem in `folder` (median of up to three runs) and leaves its output there."""
    run = METHODS[method]
    problem = torch.load(folder / "problem.pt", weights_only=True)
    # a small run first, so that threads, lazy imports and code pages count neither as time nor as memory of the cascade
    small = {"seed": problem["seed"][..., :8, :8], "psi": [p[..., :8, :8] for p in problem["psi"]]}
    with torch.no_grad():
        run(small["seed"], small["psi"], problem["mu"], problem["beta"])
        before = peak_bytes()
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < 3:
            start = time.perf_counter()
            state = run(problem["seed"], problem["psi"], problem["mu"], problem["beta"])
            seconds.append(time.perf_counter() - start)
    after = peak_bytes()
    torch.save(state, folder / f"{method}.pt")
    extra = None if before is None or after is None else (after - before) / 2**20
    return {"seconds": statistics.median(seconds), "runs": len(seconds), "extra_mib": extra}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
