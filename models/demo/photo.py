"""Part `photo`: segments a photograph from scribbles, draws what happened, and compares time, memory and result."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import random_walker
from torch import Tensor

import difnet_kernels
from difnet_kernels import backends, cascaded_random_walk, diffuse, transition_rows
from difnet_kernels.problem import Problem
from models.demo.features import SCALES, psi_of, sampled
from models.demo.figure import Panels, draw, write
from models.demo.measure import METHODS, compare
from models.demo.progress import Progress
from models.demo.scene import PHOTO, REGIONS, grid_of, photograph, scribbled, seed_of, watched_nodes

STEADY_MU = 0.99  # of the walk that is repeated until nothing changes any more: the scribbles reach far

NAMES = {"ours": "cascaded_random_walk", "dense": "dense torch", "sdpa": "torch SDPA (flash)"}


def enlarged(scores: Tensor, photo: np.ndarray) -> np.ndarray:
    """The class of every pixel (H, W) of the photo, from scores (1, K, rows, columns) on the grid."""
    # shares first: a seed holds a hundred times more than its neighbour and would win every pixel between the two
    share = scores / scores.sum(1, keepdim=True).clamp_min(1e-20)
    return F.interpolate(share, photo.shape[:2], mode="bilinear", align_corners=False).argmax(1)[0].numpy()


def walker(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Grady's random walker on the same grid and seeds (four neighbours, seeds held fixed): (K, rows, columns)."""
    small = sampled(photo, labels.shape, 0.0)
    return random_walker(small, labels + 1, beta=130, mode="cg_j", tol=1e-5, channel_axis=-1, return_full_prob=True)


def agreement(ours: np.ndarray, other: np.ndarray, classes: int) -> dict[str, float]:
    """Pixel accuracy and mean IoU of two label images of the same shape, over the classes that either has."""
    confusion = np.bincount(other.ravel() * classes + ours.ravel(), minlength=classes**2).reshape(classes, classes)
    hit, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return {
        "pixel_accuracy": float(hit.sum() / confusion.sum()),
        "mean_iou": float((hit[union > 0] / union[union > 0]).mean()),
    }


def table(measured: dict[str, dict]) -> str:
    """Time and memory of each method, one line each, with the ratio to ours."""
    base = measured["ours"]
    lines = [f"{'':24s}{'time':>10s}{'of ours':>10s}{'extra memory':>16s}"]
    for method, result in measured.items():
        if "not_measured" in result:
            lines.append(f"{NAMES[method]:24s}  not measured: {result['not_measured']}")
            continue
        memory = "not measured" if result["extra_mib"] is None else f"{result['extra_mib']:,.0f} MiB"
        ratio = f"{result['seconds'] / base['seconds']:.1f}x"
        lines.append(f"{NAMES[method]:24s}{result['seconds']:>8.2f} s{ratio:>10s}{memory:>16s}")
    return "\n".join(lines)


def run(out: Path, longer_side: int) -> dict:
    """Writes `out`/photo.png and `out`/photo.json, prints the measurements, returns what the JSON holds."""
    photo = photograph()
    grid = grid_of(photo, longer_side)
    labels = scribbled(photo, grid)
    seed = seed_of(labels, len(REGIONS))
    mu, beta = torch.tensor([s.mu for s in SCALES]), torch.tensor([s.beta for s in SCALES])
    nodes = watched_nodes(photo, grid)
    progress = Progress(len(METHODS) + 5)

    with progress(f"features of {grid[0]} x {grid[1]} = {labels.size:,} nodes at {len(SCALES)} scales"):
        psi = psi_of(photo, grid)
    backend = next(name for name in backends.BACKENDS if backends.why_not(name, Problem.of(seed, psi, "high")) is None)
    with progress(f"{len(SCALES)} walks on backend {backend!r}"):
        states = cascaded_random_walk(seed, psi, mu, beta, return_steps=True)
        rows_of_P = torch.cat([transition_rows(p, torch.tensor([nodes])) for p in psi])
    with progress(f"walk 1 until nothing changes any more (Eq. 2, mu = {STEADY_MU:g})"):
        steady = diffuse(seed, psi[0], STEADY_MU, tol=1e-3)
    with progress("skimage.segmentation.random_walker on the same seeds"):
        probability = walker(photo, labels)
    with progress("figure"):
        panels = Panels(
            photo=photo,
            regions=REGIONS,
            scales=SCALES,
            states=torch.cat([seed, *states]).numpy(),
            watched=nodes,
            rows_of_P=rows_of_P.numpy(),
            segmentation=enlarged(states[-1], photo),
            steady=enlarged(steady, photo),
            steady_mu=STEADY_MU,
            other=enlarged(torch.from_numpy(probability).unsqueeze(0), photo),
            other_name="skimage random_walker",
        )
        write(draw(panels), out / "photo.png")
    measured = compare(seed, psi, mu, beta, progress)

    ours = states[-1][0].argmax(0).numpy()
    agreed = agreement(ours, probability.argmax(0), len(REGIONS))
    at_rest = agreement(steady[0].argmax(0).numpy(), ours, len(REGIONS))
    results = {
        "photo": PHOTO,
        "grid": list(grid),
        "nodes": labels.size,
        "classes": [region.name for region in REGIONS],
        "seeds": int((labels >= 0).sum()),
        "seeds_kept": float((ours == labels)[labels >= 0].mean()),
        "scales": [asdict(scale) for scale in SCALES],
        "backend": backend,
        "measured": measured,
        "agreement": agreed,
        "agreement_of_the_steady_state": at_rest,
        "machine": {
            "difnet_kernels": difnet_kernels.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
        },
    }
    (out / "photo.json").write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"\nforward, {len(SCALES)} walks, {labels.size:,} nodes, {torch.get_num_threads()} threads; all outputs agree"
    )
    print(table(measured))
    print("\nagreement with skimage random_walker on the same seeds: ", end="")
    print("pixel accuracy {pixel_accuracy:.3f}, mean IoU {mean_iou:.3f}".format(**agreed))
    print("agreement of walk 1 repeated for ever with the five walks: ", end="")
    print("pixel accuracy {pixel_accuracy:.3f}, mean IoU {mean_iou:.3f}".format(**at_rest))
    print(f"figure: {out / 'photo.png'}\nresults: {out / 'photo.json'}")
    return results
