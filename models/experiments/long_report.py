"""Results of the budget `long` as Markdown: means over seeds, and differences to the baseline, paired by seed."""

import statistics
from collections.abc import Sequence
from typing import Any

from models.tables import markdown, mean_and_deviation

BASELINE = "Sim-Deeplab"
Runs = Sequence[dict[str, Any]]


def report(result: dict[str, Any]) -> str:
    """Everything results.json holds that a person wants to see."""
    parts = [
        "# Experiments, budget long", setting(result),
        "## Networks", networks(result),
        "## Settings", settings(result),
        "## CRF loss", crf_loss(result),
        "## Learning rates", rates(result),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def setting(result: dict[str, Any]) -> str:
    """What was asked, and of which machine."""
    data, machine = result["data"], result["environment"]
    return (
        f"Preset {data['preset']}, {data['classes']} classes; updates of 8 images. Rates and everything else that was chosen: "
        f"{data['val']} validation images. Figures: {data['test']} test images of another generator seed. "
        f"{machine['processor']}, torch {machine['torch']}, {sum(run['seconds'] for run in result['runs']) / 60:.0f} minutes "
        f"of one thread on a busy machine, commit {machine['commit']}."
    )


def networks(result: dict[str, Any]) -> str:
    """Every network in the first setting, with its contours."""
    first = result["settings"][0]
    runs = [run for run in result["runs"] if run["setting"] == first["name"]]
    rows = []
    for name in first["networks"]:
        own = [run for run in runs if run["network"] == name]
        if own:
            rows.append([
                name, f"{own[0]['parameters']:,}", own[0]["lr"], len(own), mean_and_deviation(_scores(own, "mean_iou")),
                difference(runs, name, "mean_iou"), ahead(runs, name), mean_and_deviation(_scores(own, "boundary_iou")),
                difference(runs, name, "boundary_iou"),
            ])  # fmt: skip
    header = ["network", "parameters", "rate", "seeds", "mIoU", "difference", "ahead", "boundary IoU", "difference"]
    return markdown(header, rows) + (
        f"\n\n{first['updates']} updates on {first['images']} images of {first['size']}². In percent: mean ± deviation over "
        f"seeds; difference to {BASELINE}, paired by seed, ± its standard error; ahead: in how many seeds it is positive."
    )


def settings(result: dict[str, Any]) -> str:
    """A row per setting without a CRF loss: the baseline, and what each network gains there. A dash was not run."""
    names = [name for name in result["settings"][0]["networks"] if name != BASELINE]
    rows = []
    for asked in result["settings"]:
        if asked["crf_loss"]:
            continue
        runs = [run for run in result["runs"] if run["setting"] == asked["name"]]
        seeds = {run["seed"] for run in runs}
        if runs:
            base = mean_and_deviation(_scores([run for run in runs if run["network"] == BASELINE], "mean_iou"))
            rows.append([described(asked), len(seeds), base, *(difference(runs, name, "mean_iou") for name in names)])
    return markdown(["setting", "seeds", BASELINE, *names], rows) + (
        f"\n\nmIoU of {BASELINE} in percent, and the difference of each network to it, paired by seed, ± its standard error. "
        "Fine-tuning goes on from the trained Sim-Deeplab, without and with a fresh walk."
    )


def crf_loss(result: dict[str, Any]) -> str:
    """Scribble labels with the CRF loss at several weights, against the same network and seeds without it."""
    rows = []
    for name in ("Sim-Deeplab", "own walk"):
        runs = [run for run in result["runs"] if run["network"] == name]
        plain = [run for run in runs if run["setting"] == "scribbles"]
        for weight, where in ((asked["crf_loss"], asked["name"]) for asked in result["settings"] if asked["scribbles"]):
            own = [run for run in runs if run["setting"] == where]
            if own:
                apart = [after - before for before, after in _pairs(plain, own, "mean_iou")] if weight else []
                rows.append([
                    name, weight or "–", len(own), mean_and_deviation([run["val"]["mean_iou"] for run in own]),
                    mean_and_deviation(_scores(own, "mean_iou")), _mean_and_error(apart), _ahead(apart),
                ])  # fmt: skip
    header = ["network", "weight of the CRF loss", "seeds", "validation", "mIoU", "difference", "ahead"]
    return markdown(header, rows) + (
        "\n\nScribble labels, 300 updates on 640 images of 97². In percent: mean ± deviation over seeds; difference to the "
        "same network without the CRF loss, paired by seed, ± its standard error; ahead: in how many seeds it is positive."
    )


def described(asked: dict[str, Any]) -> str:
    """A setting in words."""
    what = f"{asked['updates']} updates, {asked['images']} images, {asked['size']}²"
    more = [
        "scribble labels" if asked["scribbles"] else "",
        "no ASPP" if asked["options"].get("head") == "large_fov" else "",
        "fine-tuning" if asked["start"] else "",
    ]
    return ", ".join([what, *filter(None, more)])


def rates(result: dict[str, Any]) -> str:
    """Validation mIoU of every rate that was tried, the best in bold."""
    best = best_rates(result)
    found = {(*_family(run), run["lr"]): f"{100 * run['val']['mean_iou']:.2f}" for run in result["rates"]}
    rows = []
    for rate in sorted({run["lr"] for run in result["rates"]}):
        cells = [found.get((*family, rate), "–") for family in best]
        rows.append([rate, *(f"**{c}**" if lr == rate else c for c, lr in zip(cells, best.values(), strict=True))])
    first = result["settings"][0]["name"]
    titles = [network if where == first else f"{network}, {where}" for where, network in best]
    return markdown(["learning rate", *titles], rows)


def best_rates(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The rate of the highest mean IoU on validation images, by setting and network."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for run in result["rates"]:
        family = _family(run)
        if family not in best or run["val"]["mean_iou"] > best[family]["val"]["mean_iou"]:
            best[family] = run
    return {family: run["lr"] for family, run in best.items()}


def _family(run: dict[str, Any]) -> tuple[str, str]:
    return run["setting"], run["network"]


def paired(runs: Runs, name: str, figure: str) -> list[float]:
    """Network minus baseline, for every seed that both have."""
    base, own = ([run for run in runs if run["network"] == which] for which in (BASELINE, name))
    return [after - before for before, after in _pairs(base, own, figure)]


def _pairs(base: Runs, own: Runs, figure: str) -> list[tuple[float, float]]:
    """A figure of both, for every seed that both have, in the order of seeds."""
    of = {run["seed"]: run["test"][figure] for run in base}
    return [(of[run["seed"]], run["test"][figure]) for run in sorted(own, key=_seed) if run["seed"] in of]


def _seed(run: dict[str, Any]) -> int:
    return int(run["seed"])


def difference(runs: Runs, name: str, figure: str) -> str:
    return _mean_and_error([] if name == BASELINE else paired(runs, name, figure))


def ahead(runs: Runs, name: str) -> str:
    return _ahead([] if name == BASELINE else paired(runs, name, "mean_iou"))


def _mean_and_error(apart: Sequence[float]) -> str:
    """ "+6.40 ± 0.50": mean and standard error in percent; the mean alone of one pair; a dash for none."""
    if not apart:
        return "–"
    mean = f"{100 * statistics.fmean(apart):+.2f}"
    return mean if len(apart) == 1 else f"{mean} ± {100 * statistics.stdev(apart) / len(apart) ** 0.5:.2f}"


def _ahead(apart: Sequence[float]) -> str:
    return f"{sum(value > 0 for value in apart)} of {len(apart)}" if apart else "–"


def _scores(runs: Runs, figure: str) -> list[float]:
    return [run["test"][figure] for run in runs]
