"""Results of the experiments as Markdown: means over seeds, and differences paired by seed."""

import statistics
from collections.abc import Sequence
from typing import Any

from models.tables import markdown, mean_and_deviation

STAGE_NAMES = {"scores": "score map x", "seed": "seed s = M x"}


def report(result: dict[str, Any]) -> str:
    """Everything results.json holds that a person wants to see."""
    runs, settings, machine = result["runs"], result["settings"], result["environment"]
    questions = {variant["name"]: variant["question"] for variant in result["variants"]}
    names = list(questions)
    seeds = sorted({run["seed"] for run in runs})
    updates = settings["epochs"] * (settings["train_images"] // settings["batch_size"])
    device = machine["gpu"][0] if machine["device"].startswith("cuda") else machine["processor"]
    parts = [
        f"# Experiments, budget {result['budget']}",
        f"{settings['train_images']} training and {settings['val_images']} validation images of {settings['size']}², "
        f"preset {settings['preset']}, {settings['classes']} classes; {updates} updates of {settings['batch_size']} "
        f"images; {len(seeds)} seeds. "
        f"{device}, torch {machine['torch']}, {result['seconds']:.0f} s in all, commit {machine['commit']}.",
        "## Networks",
        comparison(runs, names, questions),
        "Mean IoU on the validation images after the last epoch, in percent, mean ± deviation over seeds. Difference: "
        "to DifNet, paired by seed. Twins: mean IoU of the classes that share colours and texture with another one; only "
        "an emblem, which distant parts of an object do not have, tells which it is.",
        "## How μ and β grow",
        *(
            f"{name}:\n\n{growth([run for run in runs if run['variant'] == name])}"
            for name in five_walks(result["variants"])
        ),
        "## What every stage of DifNet would predict",
        stage_table([run for run in runs if run["variant"] == names[0]]),
        "The stages are read out of the finished network; nothing but the last one was trained to be a prediction.",
    ]
    return "\n\n".join(parts) + "\n"


def comparison(runs: Sequence[dict[str, Any]], names: Sequence[str], questions: dict[str, str]) -> str:
    """A row per variant: parameters, mean IoU, difference to the first variant, IoU of the twins."""
    scores = {name: {run["seed"]: run["mean_iou"] for run in runs if run["variant"] == name} for name in names}
    parameters = {run["variant"]: run["parameters"] for run in runs}
    rates = {run["variant"]: run["lr"] for run in runs}
    rows = []
    for name in names:
        differences = [score - scores[names[0]][seed] for seed, score in scores[name].items()]
        shown = "–" if name == names[0] else mean_and_deviation(differences)
        twins = [run["twins_iou"] for run in runs if run["variant"] == name and run["twins_iou"] is not None]
        rows.append(
            [
                name,
                questions[name],
                f"{parameters[name]:,}",
                rates[name],
                mean_and_deviation(list(scores[name].values())),
                shown,
                mean_and_deviation(twins),
            ]
        )
    return markdown(["network", "question", "parameters", "learning rate", "mIoU", "difference", "twins"], rows)


def five_walks(variants: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the networks with the paper's whole cascade, however else they differ."""
    return [
        variant["name"]
        for variant in variants
        if variant["model"].startswith("difnet") and not {"walks", "diffusion"} & set(variant["options"])
    ]


def growth(runs: Sequence[dict[str, Any]]) -> str:
    """μₜ and βₜ, means over seeds: at the start (0.5), half way, and at the end."""
    epochs = len(runs[0]["mu"])
    middle = (epochs - 1) // 2
    rows = []
    for walk in range(len(runs[0]["mu"][0])):
        row = [f"⊕{walk + 1}"]
        for gate in ("mu", "beta"):
            for epoch in (middle, epochs - 1):
                row.append(f"{statistics.fmean(run[gate][epoch][walk] for run in runs):.4f}")
        rows.append(row)
    header = ["walk"] + [f"{gate}, epoch {epoch + 1}" for gate in ("μ", "β") for epoch in (middle, epochs - 1)]
    return markdown(header, rows)


def stage_table(runs: Sequence[dict[str, Any]]) -> str:
    rows = [
        [STAGE_NAMES.get(stage, f"y after walk {stage}"), mean_and_deviation([run["stages"][stage] for run in runs])]
        for stage in runs[0]["stages"]
    ]
    return markdown(["stage", "mIoU"], rows)
