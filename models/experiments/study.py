"""The paper's claims, run again on generated images with several seeds.

python -m models.experiments --budget cpu --out runs/experiments       minutes on two cores
python -m models.experiments --budget gpu --out runs/experiments       minutes on one large GPU
python -m models.experiments --budget long --out runs/long             where a walk pays, an hour or two: `long.py`

Every variant is trained from scratch on the same images for the same number of updates; seed k decides its weights
and the order and augmentation of the data. Results: results.json (every run) and results.md (the tables), in --out.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from models import checkpoints
from models.commands import guarded
from models.data import build_dataset, build_transform
from models.data.scenes import PRESETS, class_looks
from models.data.synthetic import generate
from models.evaluation.stages import mean_iou_by_stage
from models.experiments import long, long_report
from models.experiments.processes import run_all
from models.experiments.report import report
from models.networks.difnet import DifNet
from models.train import train
from models.training import TrainConfig
from models.training.config import resolve_recipe
from models.training.machine import environment
from models.training.run_folder import RunFolder
from models.writing import write_text, writing


@dataclass(frozen=True)
class Variant:
    """A network and the question it answers by comparison with the first variant."""

    name: str
    question: str
    model: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How much is computed. `deeper` and `wider` give the baseline about the parameters of the DifNet.

    lr, lr_baseline, lr_deeper: in "cpu", the best that `models.rates` found for each family; in "gpu" they are not
    tuned. γ of Ψ starts as it did for the authors ("uniform"):
    P is less one-hot then, which matters when there are only a few hundred updates.
    """

    difnet: str
    baseline: str
    deeper: tuple[str, dict[str, Any]]
    wider: dict[str, Any]
    preset: str
    classes: int
    size: int
    train_images: int
    val_images: int
    epochs: int
    batch_size: int
    lr: float = 0.05
    lr_baseline: float = 0.05
    lr_deeper: float = 0.05
    recipe: str = "generated"
    clip: float = 1.0
    seeds: int = 3
    amp: str = "none"
    workers: int = 0

    def variants(self) -> list[Variant]:
        def difnet(name: str, question: str, **options: Any) -> Variant:
            return Variant(name, question, self.difnet, self.lr, {"bn_init": "uniform", **options})

        def baseline(name: str, question: str, **options: Any) -> Variant:
            return Variant(name, question, self.baseline, self.lr_baseline, options)

        deeper, blocks = self.deeper
        return [
            difnet("DifNet", "the paper's network"),
            baseline("Sim-Deeplab", "Table 1: do walks help at equal depth?"),
            Variant("Sim-Deeplab, deeper", "Table 1: at equal parameters?", deeper, self.lr_deeper, blocks),
            baseline("Sim-Deeplab, wider", "and at equal depth, too?", **self.wider),
            difnet("DifNet without ASPP", "Table 1: is ASPP needed?", head="large_fov"),
            baseline("Sim-Deeplab without ASPP", "and without walks?", head="large_fov"),
            difnet("walks 1, 3, 5", "§5.3: does every level help?", walks=[1, 3, 5]),
            difnet("walk 5 alone", "§4: does a cascade help?", walks=[5]),
            difnet("closed form", "Eq. 2 on level 5, no cascade", diffusion="closed_form"),
            difnet("without importance map", "§4: does M help?", importance=False),
        ]


TINY: dict[str, Any] = {
    "difnet": "difnet_tiny", "baseline": "sim_deeplab_tiny", "deeper": ("sim_deeplab_tiny", {"blocks": [2, 2, 2, 2]}),
    "wider": {"width": 23},
}  # fmt: skip
BUDGETS = {
    "cpu": Budget(
        **TINY, preset="paper", classes=4, size=65, train_images=640, val_images=200, epochs=5, batch_size=8,
        lr=0.2, lr_baseline=0.2, lr_deeper=0.2,
    ),
    "gpu": Budget(
        "difnet18", "sim_deeplab18", ("sim_deeplab34", {}), {"width": 90},
        preset="paper", classes=21, size=129, train_images=2000, val_images=300, epochs=8, batch_size=16, amp="bf16",
        workers=4,
    ),
    # for tests: every step of the way, no meaning
    "smoke": Budget(
        **TINY, preset="easy", classes=4, size=48, train_images=8, val_images=2, epochs=2, batch_size=4, seeds=2
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run: picklable, so that another process can do it."""

    variant: Variant
    seed: int
    budget: Budget
    data: str
    out: str
    device: str
    threads: int


def run_job(job: Job) -> dict[str, Any]:
    """Train one variant with one seed (or find it finished) and read every stage of the network."""
    torch.set_num_threads(job.threads)
    budget, variant = job.budget, job.variant
    recipe = resolve_recipe(
        budget.recipe, epochs=budget.epochs, batch_size=budget.batch_size, crop=budget.size, lr=variant.lr
    )
    config = TrainConfig(
        variant.model,
        recipe,
        variant.options,
        job.data,
        seed=job.seed,
        amp=budget.amp,
        clip=budget.clip,
        val_every=budget.epochs,
    )
    folder = RunFolder(job.out)
    started = time.perf_counter()
    if len(folder.read_metrics()) < budget.epochs:
        train(
            config,
            job.out,
            resume=folder.last.exists(),
            device=job.device,
            workers=budget.workers,
            check=False,
            progress=False,
            terminal=False,
        )
    history = folder.read_metrics()
    model, _ = checkpoints.restore(folder.last)
    return {
        "variant": variant.name,
        "seed": job.seed,
        "lr": variant.lr,
        "parameters": sum(p.numel() for p in model.parameters()),
        "mean_iou": history[-1]["mean_iou"],
        "twins_iou": twins_iou(history[-1]["per_class_iou"], budget),
        "pixel_accuracy": history[-1]["pixel_accuracy"],
        "loss": [row["loss"] for row in history],
        "mu": [row["mu"] for row in history if "mu" in row],
        "beta": [row["beta"] for row in history if "beta" in row],
        "stages": read_stages(model, job) if variant.name == "DifNet" and isinstance(model, DifNet) else {},
        "seconds": time.perf_counter() - started,
    }


def twins_iou(per_class_iou: Sequence[float | None], budget: Budget) -> float | None:
    """Mean IoU of the classes that look like another one: only an emblem, which may be far away, says which it is."""
    looks = class_looks(PRESETS[budget.preset], budget.classes)
    found = [per_class_iou[c] for c, look in enumerate(looks, start=1) if look.twin]
    occurring = [iou for iou in found if iou is not None]
    return statistics.fmean(occurring) if occurring else None


def read_stages(model: DifNet, job: Job) -> dict[str, float]:
    """Mean IoU of the score map, of the seed and after every walk."""
    val_set = build_dataset(job.data, "voc", "val", build_transform("default"))
    return mean_iou_by_stage(model.to(job.device), val_set, amp=job.budget.amp, device=job.device)


def run(budget_name: str, out: str | Path, device: str, parallel: int, seeds: int | None = None) -> dict[str, Any]:
    """All variants and seeds of a budget, `parallel` at a time; finished runs in `out` are kept."""
    budget, out = budget_of(budget_name), Path(out)
    variants = budget.variants()
    result = measure(budget_name, variants, range(1, 1 + (seeds or budget.seeds)), out, device, parallel)
    for name, text in (("results.json", json.dumps(result, indent=1) + "\n"), ("results.md", report(result))):
        write_text(out / name, text)
    return result


def measure(
    budget_name: str, variants: Sequence[Variant], seeds: Iterable[int], out: Path, device: str, parallel: int
) -> dict[str, Any]:
    """Every variant with every seed, and what was asked of which machine."""
    budget = budget_of(budget_name)
    started = time.perf_counter()
    counts = {"train": budget.train_images, "val": budget.val_images}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    data = generate(out / "data", budget.preset, budget.classes, counts, size=budget.size)
    threads = max(1, torch.get_num_threads() // parallel)
    jobs = [
        Job(variant, seed, budget, str(data), str(out / f"{folder_name(variant.name)}-{seed}"), device, threads)
        for seed in seeds
        for variant in variants
    ]
    runs = run_all(run_job, jobs, parallel, _told)
    return {
        "budget": budget_name,
        "settings": asdict(budget),
        "variants": [asdict(variant) for variant in variants],
        "environment": {**environment(), "device": device, "parallel": parallel},
        "seconds": time.perf_counter() - started,
        "runs": runs,
    }


def budget_of(name: str) -> Budget:
    if name not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}; got {name!r}.")
    return BUDGETS[name]


def folder_name(variant: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in variant.lower())


def _told(run: dict[str, Any]) -> str:
    return f"{run['variant']}, seed {run['seed']}: mIoU {100 * run['mean_iou']:.2f} ({run['seconds']:.0f} s)"


def build_parser(prog: str, about: str, out: str, more: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--budget", default="cpu", help=", ".join((*BUDGETS, *more)))
    parser.add_argument("--out", default=out)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parallel", type=int, help="runs at a time; default: one a core, on a GPU four")
    return parser


def parallel_of(options: argparse.Namespace) -> int:
    return options.parallel or (4 if options.device.startswith("cuda") else os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser("python -m models.experiments", __doc__.splitlines()[0], "runs/experiments", more=("long",))
    parser.add_argument("--seeds", type=int, help="instead of the budget's")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.budget == "long":
            print(long_report.report(long.run(options.out, parallel_of(options), options.seeds or long.SEEDS)))
        else:
            print(report(run(options.budget, options.out, options.device, parallel_of(options), options.seeds)))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
