"""Where a walk pays: budget `long`, on images where a class must be learned from far away.

Networks of one trunk, with and without walks, in several settings. Rates are chosen on validation images; the figures are from
test images of another generator seed. Every finished run is a file in --out, so that the budget can be computed in parts;
results.json holds what there is.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difnet_kernels import parameter_groups
from models.data import RECIPES
from models.data.scribbles import scribbles
from models.experiments.processes import run_all
from models.networks.builder import build_model
from models.networks.walk_deeplab import WalkDeeplab
from models.training.crf_loss import crf_loss
from models.training.machine import environment
from models.training.report import gates
from models.training.short import Images, fit, generated, score
from models.writing import write_text, writing

PRESET, CLASSES = "long", 5
WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9
RATES_SEED = 1  # of the runs that choose a rate, by their validation images


@dataclass(frozen=True)
class Network:
    """A network of the comparison. lr: the best of those tried, on validation images."""

    name: str
    model: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    network.name: network
    for network in (
        Network("Sim-Deeplab", "sim_deeplab_tiny", 0.2),
        Network("wider", "sim_deeplab_tiny", 0.1, {"width": 23}),
        Network("image pooling", "sim_deeplab_tiny", 0.2, {"context": "image_pooling"}),
        Network("non-local block", "sim_deeplab_tiny", 0.2, {"context": "non_local"}),
        Network("own walk", "walk_deeplab_tiny", 0.2),
        Network("DifNet", "difnet_tiny", 0.2, {"bn_init": "uniform"}),
    )
}
BASELINE = "Sim-Deeplab"
FEW = ("Sim-Deeplab", "wider", "own walk", "DifNet")


@dataclass(frozen=True)
class Setting:
    """What is trained on.

    start: every network begins with the baseline's weights of the setting of that name, and lr are the best of its own rates.
    """

    name: str
    networks: tuple[str, ...] = FEW
    updates: int = 300
    images: int = 640
    size: int = 97
    scribbles: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    lr: dict[str, float] = field(default_factory=dict)  # instead of the networks' own
    rates: tuple[float, ...] = ()  # that were tried in this setting
    crf_loss: float = 0.0  # its weight beside the cross entropy


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("base", tuple(NETWORKS), rates=(0.1, 0.2, 0.4)),
        Setting(
            "fine-tuning",
            ("Sim-Deeplab", "own walk"),
            updates=100,
            start="base",
            lr={"Sim-Deeplab": 0.2, "own walk": 0.2},
            rates=(0.05, 0.1, 0.2),
        ),
        Setting("80 images", updates=600, images=80),
        Setting("900 updates", ("Sim-Deeplab", "wider", "image pooling", "own walk", "DifNet"), updates=900),
        Setting("scribbles", scribbles=True),
        Setting("no ASPP, 129²", size=129, options={"head": "large_fov"}),
        Setting("scribbles, CRF loss 0.5", ("Sim-Deeplab", "own walk"), scribbles=True, crf_loss=0.5),
    )
}
SEEDS = 5
VAL_IMAGES, TEST_IMAGES, TEST_SEED = 200, 400, 1


@dataclass(frozen=True)
class Job:
    """One run: picklable, so that another process can do it."""

    setting: Setting
    network: Network
    seed: int
    out: str
    lr: float
    val_images: int = VAL_IMAGES
    test_images: int = TEST_IMAGES
    threads: int = 1

    def file(self, suffix: str = ".json") -> Path:
        name = f"{self.setting.name}-{self.network.name}-{self.lr}-{self.seed}"
        return Path(self.out) / ("".join(c if c.isalnum() or c in ".-" else "_" for c in name) + suffix)

    def before(self) -> Job:
        """The run whose weights this one begins with."""
        assert self.setting.start is not None
        baseline = NETWORKS[BASELINE]
        return replace(self, setting=SETTINGS[self.setting.start], network=baseline, lr=baseline.lr)


def run_job(job: Job) -> dict[str, Any]:
    """Train one network with one seed, or read what an earlier call found."""
    if job.file().exists():
        return dict(json.loads(job.file().read_text()))
    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    setting = job.setting
    train_set = _images(setting.images, setting.size, 0, "train", setting.scribbles)
    torch.manual_seed(job.seed)
    model = build_model(job.network.model, CLASSES, **{**job.network.options, **setting.options})
    if setting.start:
        model.load_state_dict(torch.load(job.before().file(".pt")), strict=not isinstance(model, WalkDeeplab))
    model.to(memory_format=torch.channels_last)
    groups = parameter_groups(model, job.lr, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.SGD(groups, job.lr, MOMENTUM)
    also = _crf_loss(setting.crf_loss) if setting.crf_loss else None
    losses = fit(model.train(), train_set, optimizer, setting.updates, seed=job.seed, also=also)
    model.eval()
    found = {
        "setting": setting.name,
        "network": job.network.name,
        "seed": job.seed,
        "lr": job.lr,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": statistics.fmean(losses[-20:]),
        "val": score(model, _images(job.val_images, setting.size, 0, "val")).to_dict(),
        "test": score(model, _images(job.test_images, setting.size, TEST_SEED, "test")).to_dict(),
        **gates(model),
        "seconds": time.perf_counter() - started,
    }
    if isinstance(model, WalkDeeplab):
        assert model.walk.gamma is not None
        found["gamma"] = model.walk.gamma.item()
    if any(other.start == setting.name for other in SETTINGS.values()) and job.network.name == BASELINE:
        torch.save(model.state_dict(), job.file(".pt"))
    write_text(job.file(), json.dumps(found) + "\n")
    return found


def _crf_loss(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`--crf-loss WEIGHT` of `models.train`, on the normalised images that it sees."""
    grey_levels = torch.tensor(RECIPES["default"].std).view(-1, 1, 1)  # of one unit of an image
    return lambda logits, image: weight * crf_loss(logits, image * grey_levels)


@lru_cache(maxsize=6)
def _images(count: int, size: int, seed: int, split: str, weak: bool = False) -> Images:
    found = generated(PRESET, CLASSES, count, size, seed=seed, split=split)
    if not weak:
        return found
    strokes = [torch.from_numpy(scribbles(mask.numpy(), index)) for index, mask in enumerate(found.mask)]
    return replace(found, mask=torch.stack(strokes))


def jobs_of(out: Path, seeds: Sequence[int], settings: Sequence[Setting], **sizes: int) -> tuple[list[Job], list[Job]]:
    """The runs that choose the rates, and those of the comparison, a seed of every setting after the other.

    At the chosen rate they are the same: a run is in both.
    """

    def job(setting: Setting, name: str, seed: int, lr: float) -> Job:
        return Job(setting, NETWORKS[name], seed, str(out), lr, **sizes)

    tried = [job(s, name, RATES_SEED, lr) for s in settings for lr in s.rates for name in s.networks]
    return tried, [
        job(s, name, seed, s.lr.get(name, NETWORKS[name].lr)) for seed in seeds for s in settings for name in s.networks
    ]


def run(
    out: str | Path, parallel: int, seeds: int = SEEDS, *, only_finished: bool = False, **sizes: int
) -> dict[str, Any]:
    """The whole budget, or what of it is finished; runs in `out` are kept. Writes results.json and results.md there."""
    from models.experiments.long_report import report

    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    tried, compared = jobs_of(out, range(1, seeds + 1), tuple(SETTINGS.values()), **sizes)
    jobs = {job.file(): job for job in tried + compared}.values()
    for depends in (
        () if only_finished else (False, True)
    ):  # those that begin with the weights of another run come after it
        run_all(run_job, [job for job in jobs if (job.setting.start is not None) == depends], parallel, _told)
    result = collect(tried, compared, environment())
    for name, text in (("results.json", dumped(result)), ("results.md", report(result))):
        write_text(out / name, text)
    return result


def collect(tried: Sequence[Job], compared: Sequence[Job], machine: dict[str, Any]) -> dict[str, Any]:
    """What the finished ones of both kinds of runs found."""

    def found(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        return [json.loads(job.file().read_text()) for job in jobs if job.file().exists()]

    first = compared[0]
    return {
        "budget": "long",
        "data": {
            "preset": PRESET, "classes": CLASSES, "val": first.val_images, "test": first.test_images, "test_seed": TEST_SEED,
        },
        "settings": [asdict(setting) for setting in SETTINGS.values()],
        "networks": [asdict(network) for network in NETWORKS.values()],
        "environment": machine,
        "rates": found(tried),
        "runs": found(compared),
    }  # fmt: skip


def dumped(result: dict[str, Any]) -> str:
    """JSON of a line per run, so that a difference of two files can be read."""
    lists = ("settings", "networks", "rates", "runs")
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key not in lists]
    for key in lists:
        lines = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in result[key])
        parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _told(run: dict[str, Any]) -> str:
    where = f"{run['setting']}, {run['network']}, seed {run['seed']}, rate {run['lr']}"
    return f"{where}: mIoU {100 * run['test']['mean_iou']:.2f} ({run['seconds']:.0f} s)"
