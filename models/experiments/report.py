"""Results of the experiments as Markdown: means over seeds, and differences paired by seed."""

import statistics
from collections.abc import Sequence
from typing import Any

from models.tables import markdown, mean_and_deviation

STAGE_NAMES = {"scores": "score map x", "seed": "seed s = M x"}


def report(result: dict[str, Any]) -> str:
    """Everything results.json holds that a person wants to see."""
    parts = [
        f"# Experiments, budget {result['budget']}",
        setting(result),
        "## Networks",
        networks(result),
        "## How μ and β grow",
        *(
            f"{name}:\n\n{growth([run for run in result['runs'] if run['variant'] == name])}"
            for name in five_walks(result["variants"])
        ),
        "## What every stage of DifNet would predict",
        stages(result),
    ]
    return "\n\n".join(parts) + "\n"


def setting(result: dict[str, Any]) -> str:
    """What was asked, and of which machine."""
    settings, machine = result["settings"], result["environment"]
    seeds = {run["seed"] for run in result["runs"]}
    updates = settings["epochs"] * (settings["train_images"] // settings["batch_size"])
    device = machine["gpu"][0] if machine["device"].startswith("cuda") else machine["processor"]
    return (
        f"{settings['train_images']} training and {settings['val_images']} validation images of {settings['size']}², "
        f"preset {settings['preset']}, {settings['classes']} classes; {updates} updates of {settings['batch_size']} "
        f"images; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}. "
        f"{device}, torch {machine['torch']}, {result['seconds']:.0f} s in all, commit {machine['commit']}."
    )


def networks(result: dict[str, Any]) -> str:
    """The comparison, and how to read it."""
    questions = {variant["name"]: variant["question"] for variant in result["variants"]}
    return comparison(result["runs"], list(questions), questions) + (
        "\n\nMean IoU on the validation images after the last epoch, in percent, mean ± deviation over seeds. Difference: "
        "to DifNet, paired by seed; ahead: in how many seeds it is positive. Twins: mean IoU of the classes that share "
        "colours and texture with another one; only an emblem, which distant parts of an object do not have, tells which it "
        "is."
    )


def stages(result: dict[str, Any]) -> str:
    """What DifNet would predict if it ended earlier, and how to read it."""
    first = result["variants"][0]["name"]
    return stage_table([run for run in result["runs"] if run["variant"] == first]) + (
        "\n\nThe stages are read out of the finished network; nothing but the last one was trained to be a prediction."
    )


def comparison(runs: Sequence[dict[str, Any]], names: Sequence[str], questions: dict[str, str]) -> str:
    """A row per variant: parameters, mean IoU, difference to the first variant, in how many seeds it is ahead of that,
    IoU of the twins."""
    scores = {name: {run["seed"]: run["mean_iou"] for run in runs if run["variant"] == name} for name in names}
    parameters = {run["variant"]: run["parameters"] for run in runs}
    rates = {run["variant"]: run["lr"] for run in runs}
    rows = []
    for name in names:
        differences = [score - scores[names[0]][seed] for seed, score in scores[name].items()]
        shown, ahead = mean_and_deviation(differences), f"{sum(d > 0 for d in differences)} of {len(differences)}"
        if name == names[0]:
            shown = ahead = "–"
        twins = [run["twins_iou"] for run in runs if run["variant"] == name and run["twins_iou"] is not None]
        rows.append(
            [
                name,
                questions[name],
                f"{parameters[name]:,}",
                rates[name],
                mean_and_deviation(list(scores[name].values())),
                shown,
                ahead,
                mean_and_deviation(twins),
            ]
        )
    return markdown(
        ["network", "question", "parameters", "learning rate", "mIoU", "difference", "ahead", "twins"], rows
    )


def five_walks(variants: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the networks with the paper's whole cascade, however else they differ."""
    return [
        variant["name"]
        for variant in variants
        if variant["model"].startswith("difnet") and not {"walks", "diffusion"} & set(variant["options"])
    ]


def best_rates(result: dict[str, Any]) -> dict[str, float]:
    """The rate of the highest mean IoU, by family."""
    best: dict[str, dict[str, Any]] = {}
    for run in result["runs"]:
        if run["family"] not in best or run["mean_iou"] > best[run["family"]]["mean_iou"]:
            best[run["family"]] = run
    return {family: run["lr"] for family, run in best.items()}


def rates_table(result: dict[str, Any]) -> str:
    """A row per rate, a column per family, the best in bold."""
    best = best_rates(result)
    scores = {(run["family"], run["lr"]): f"{100 * run['mean_iou']:.2f}" for run in result["runs"]}
    rates = sorted({rate for _, rate in scores})
    rows = [
        [rate, *(f"**{scores[family, rate]}**" if best[family] == rate else scores[family, rate] for family in best)]
        for rate in rates
    ]
    return markdown(["learning rate", *best], rows)


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
