"""Part `networks`: trains a small DifNet and its baseline on generated images, and draws the paper's Figs. 2, 3 and 4."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models import checkpoints
from models.data.synthetic import generate
from models.demo.progress import Progress
from models.evaluation.stages import mean_iou_by_stage
from models.networks.difnet import DifNet
from models.tables import hop_shares
from models.train import data_sets, train
from models.training import Stopped, TrainConfig
from models.training.config import resolve_recipe
from models.training.machine import environment
from models.training.report import gates
from models.training.run_folder import RunFolder
from models.visualize import WHY_NORMS, draw, from_dataset

SIZE, CLASSES, PRESET = 97, 5, "long"
VALIDATION = 100  # images
SHOWN = 4  # images in the figures
DIFNET, BASELINE = "difnet_tiny", "sim_deeplab_tiny"
LEVELS = ("the image", "stage 1", "stage 2", "stage 3", "stage 4")


@dataclass(frozen=True)
class Trained:
    """A finished network and the score it ends with."""

    network: nn.Module
    mean_iou: float
    parameters: int


def config_of(model: str, data: Path, epochs: int, batch: int) -> TrainConfig:
    """The same recipe for both networks. γ of Ψ starts as it did for the authors: P is less one-hot then, and learns."""
    options = {"bn_init": "uniform"} if model == DIFNET else {}
    recipe = resolve_recipe("generated", epochs=epochs, batch_size=batch, crop=SIZE)
    return TrainConfig(model, recipe, options, str(data), clip=1.0, val_every=epochs)


def trained(config: TrainConfig, out: Path) -> Trained:
    """Trains into the run folder `out`, in place of the run of an earlier demo."""
    if RunFolder(out).config_file.exists():
        shutil.rmtree(out)
    try:
        row = train(config, out, device="cpu", check=False, terminal=False)
    except Stopped as stopped:  # Ctrl-C, which training turns into a checkpoint
        raise KeyboardInterrupt from stopped
    network, _ = checkpoints.restore(RunFolder(out).last)
    return Trained(network, row["mean_iou"], sum(p.numel() for p in network.parameters()))


def table(by_stage: dict[str, float], mu: list[float], beta: list[float]) -> str:
    """What each stage of the DifNet would predict, a line each; the walks with the level they compare nodes on."""
    lines = [f"{'':34s}{'mIoU':>8s}{'μ':>8s}{'β':>8s}"]
    for stage, name in (("scores", "score map x of the seed branch"), ("seed", "seed s = M x")):
        lines.append(f"{name:34s}{by_stage[stage]:>8.1%}")
    for t, (level, m, b) in enumerate(zip(LEVELS, mu, beta, strict=True), start=1):
        lines.append(f"{f'after walk {t}, along {level}':34s}{by_stage[str(t)]:>8.1%}{m:>8.3f}{b:>8.3f}")
    return "\n".join(lines)


def report(found: dict[str, Any]) -> str:
    """What networks.json holds, for somebody who meets all this for the first time."""
    networks = (("Sim-Deeplab, one branch", BASELINE), ("DifNet, two branches and walks", DIFNET))
    lines = [
        "The classes are pairs with the same texture and colours; a light or a dark disc tells two of a pair apart. Every",
        "object has distant parts without a disc, so the news has to travel.",
        "",
        f"mean IoU on {found['data']['val']} images that were not trained on (100 % would be the ground truth):",
    ]
    for title, name in networks:
        row = found["networks"][name]
        lines.append(f"{title:34s}{row['mean_iou']:>8.1%}{row['parameters']:>12,} parameters")
    lines += ["", "inside the DifNet, what it would predict if it stopped earlier:"]
    lines.append(table(found["stages"], found["mu"], found["beta"]))
    shares = " / ".join(f"{share:.0%}" for share in found["hop_shares"])
    lines += [
        "",
        "μ: how much a walk takes from similar nodes, the rest is from the seed; β: how much of the state it replaces.",
        f"Share of the result that came from 0, 1, ... walks away: {shares}",
        "One run of one small network is an anecdote; docs/results.md compares over several seeds, and says where it pays.",
    ]
    return "\n".join(lines)


def run(out: Path, images: int, epochs: int, batch: int = 8) -> dict[str, Any]:
    """Writes fig2.png, fig3.png, fig4.png, networks.json and the two run folders to `out`; returns what the JSON holds.

    images: how many to train on. epochs: how often each of them is seen.
    """
    progress = Progress(5)
    with progress(f"{images} + {VALIDATION} generated images of {SIZE} x {SIZE} pixels, {CLASSES} classes"):
        data = generate(out / f"data-{images}", PRESET, CLASSES, {"train": images, "val": VALIDATION}, SIZE)
    configs = {name: config_of(name, data, epochs, batch) for name in (BASELINE, DIFNET)}
    results = {}
    for name, title in ((BASELINE, "Sim-Deeplab"), (DIFNET, "DifNet")):
        with progress(f"train {title} ({name}), {epochs * (images // batch)} updates", lines_follow=True):
            results[name] = trained(configs[name], out / "runs" / name)
    difnet = results[DIFNET].network
    _, val_set = data_sets(configs[DIFNET])
    assert isinstance(difnet, DifNet) and val_set is not None
    with progress("read the DifNet out before and after every walk"):
        by_stage = mean_iou_by_stage(difnet, val_set)
    with progress("figures"):
        examples = from_dataset(difnet, val_set, range(SHOWN))
        figures = draw(difnet, examples, val_set.classes, out)

    learned = gates(difnet)
    found = {
        "data": {"preset": PRESET, "classes": CLASSES, "size": SIZE, "train": images, "val": VALIDATION},
        "networks": {name: {"mean_iou": r.mean_iou, "parameters": r.parameters} for name, r in results.items()},
        "stages": by_stage,
        **learned,
        "hop_shares": hop_shares(learned["mu"], learned["beta"]),
        "recipe": configs[DIFNET].recipe.to_dict(),
        "machine": environment(),
    }
    (out / "networks.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    print(f"\n{report(found)}\n")
    told = ("score, influence, importance", f"where nodes look. {WHY_NORMS}", "walk by walk")
    for path, what in zip(figures, told, strict=True):
        print(f"{path}: {what}")
    print(f"results: {out / 'networks.json'}")
    return found
