"""One network with fused walks and with dense ones, on the CPU: time of an inference, and peak memory.

Times are taken alternately in one process; memory is the growth of a process of its own, so that no peak hides another.
`compare` is the parent; `python -m models.experiments.against_dense DIFFUSION WHAT NETWORK SIZE BATCH` is the child.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from models.demo.measure import peak_bytes, tolerance
from models.networks.builder import build_model
from models.networks.difnet import DifNet

DIFFUSIONS = ("cascade", "dense")
ROOT = Path(__file__).resolve().parents[2]
SMALL = 65  # side of the image that warms up: lazy imports and threads are no memory of the walks


def compare(network: str, size: int, batch: int, training_batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    """{"cascade": {"seconds": {"median", "deviation"}, "inference_mib", "training_mib"}, "dense": …}.

    seconds, inference_mib: the whole network on `batch` images of size². training_mib: the five walks alone, forward and
    backward, for `training_batch` images; not the rest of the network, which is the same and much larger.
    Raises RuntimeError if the two do not compute the same logits.
    """
    pair = {diffusion: fixed(network, diffusion) for diffusion in DIFFUSIONS}
    image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {diffusion: [] for diffusion in DIFFUSIONS}
    logits = {}
    with torch.no_grad():
        for index in range(repeats + 1):  # the first one warms up
            for diffusion, model in pair.items():
                started = time.perf_counter()
                logits[diffusion] = model(image)
                if index:
                    seconds[diffusion].append(time.perf_counter() - started)
        bound = tolerance(pair["cascade"].similarity(image))
    difference = float((logits["cascade"] - logits["dense"]).abs().max() / logits["dense"].abs().max())
    if not difference <= bound:
        raise RuntimeError(f"Fused and dense walks must agree within {bound:.1e}; they differ by {difference:.1e}.")
    return {
        diffusion: {
            "seconds": {"median": statistics.median(taken), "deviation": statistics.pstdev(taken)},
            "inference_mib": growth_in_a_child(diffusion, "inference", network, size, batch),
            "training_mib": growth_in_a_child(diffusion, "training", network, size, training_batch),
            "difference": difference,
        }
        for diffusion, taken in seconds.items()
    }


def fixed(network: str, diffusion: str) -> DifNet:
    """The network in eval mode, with the same weights whichever way it diffuses."""
    torch.manual_seed(0)
    model = build_model(network, diffusion=diffusion).eval()
    assert isinstance(model, DifNet)
    return model.to(memory_format=torch.channels_last)


def growth_in_a_child(diffusion: str, what: str, network: str, size: int, batch: int) -> float | str:
    """MiB by which a fresh process grows, or why that is not known."""
    command = [
        sys.executable,
        "-m",
        "models.experiments.against_dense",
        diffusion,
        what,
        network,
        str(size),
        str(batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 0:
        return float(json.loads(done.stdout))
    told = done.stderr.strip().splitlines()
    return f"not measured: {told[-1] if told else f'ended by signal {-done.returncode}'}"


def growth(diffusion: str, what: str, network: str, size: int, batch: int) -> float:
    """MiB by which this process grows from a small image to one of size²: the `what` of `compare`."""
    model = fixed(network, diffusion)
    run = {"inference": infer, "training": walk_both_ways}[what]
    run(model, SMALL, 1)
    before = peak_bytes()
    run(model, size, batch)
    after = peak_bytes()
    if before is None or after is None:
        raise RuntimeError("this system does not say how much memory a process had at most")
    return (after - before) / 2**20


@torch.no_grad()
def infer(model: DifNet, size: int, batch: int) -> None:
    model(torch.randn(batch, 3, size, size))


def walk_both_ways(model: DifNet, size: int, batch: int) -> None:
    """The walks forward and backward on random seeds and embeddings, on the grid that the trunk gives size²."""
    grid = (size + 7) // 8  # output stride 8, rounded up: 321 -> 41
    dim = next(model.walk.psi.parameters()).shape[0]
    seed = torch.randn(batch, model.num_classes, grid, grid).requires_grad_()
    psi = [torch.randn(batch, dim, grid, grid).mul_(0.3).requires_grad_() for _ in model.walks]
    model.walk.diffuse(seed, psi).sum().backward()


def table_rows(result: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows for people, a way to diffuse each."""

    def mib(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:,.0f} MiB"

    return [
        [
            {"cascade": "fused walks", "dense": "dense walks"}[diffusion],
            f"{row['seconds']['median']:.3f} ± {row['seconds']['deviation']:.3f} s",
            mib(row["inference_mib"]),
            mib(row["training_mib"]),
        ]
        for diffusion, row in result.items()
    ]


if __name__ == "__main__":
    way, measured, name, side, images = sys.argv[1:]
    print(json.dumps(growth(way, measured, name, int(side), int(images))))
