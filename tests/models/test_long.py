"""The budget `long`: runs are kept, parts are reported as parts, and the committed numbers carry the committed sentences."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import pytest

from models.experiments import long, long_report, study
from models.experiments.long import BASELINE, NETWORKS, SETTINGS, Job

ALL = dict(SETTINGS)  # a fixture leaves fewer
RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture(scope="module")
def few():
    """Two settings of two networks, two updates each."""
    small = {"images": 8, "updates": 2, "size": 48, "networks": ("Sim-Deeplab", "own walk")}
    SETTINGS.clear()
    SETTINGS["base"] = replace(ALL["base"], **small)
    SETTINGS["fine-tuning"] = replace(ALL["fine-tuning"], **small)
    SETTINGS["scribbles"] = replace(ALL["scribbles"], **small)
    yield
    SETTINGS.clear()
    SETTINGS.update(ALL)


@pytest.fixture(scope="module")
def result(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("long")
    return long.run(out, 1, seeds=2, val_images=3, test_images=4), out


def test_every_setting_runs_with_every_seed(result):
    result, out = result
    assert {(run["setting"], run["network"], run["seed"]) for run in result["runs"]} == {
        (setting, network, seed)
        for setting in ("base", "fine-tuning", "scribbles")
        for network in ("Sim-Deeplab", "own walk")
        for seed in (1, 2)
    }
    assert {(run["setting"], run["network"], run["lr"]) for run in result["rates"]} == {
        (setting, network, lr)
        for setting in ("base", "fine-tuning")
        for network in ("Sim-Deeplab", "own walk")
        for lr in ALL[setting].rates
    }
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "results.md").read_text() == long_report.report(result)
    assert all(("gamma" in run) == (run["network"] == "own walk") for run in result["runs"])


def test_finished_runs_are_kept(result, monkeypatch):
    first, out = result
    monkeypatch.setattr(long, "fit", lambda *args, **arguments: pytest.fail("a finished run was trained again"))
    assert long.run(out, 1, seeds=2, val_images=3, test_images=4)["runs"] == first["runs"]


def test_what_is_finished_is_reported_without_training(result, monkeypatch, tmp_path):
    first, out = result
    for path in list(out.glob("base-*-1.json"))[:1] + list(out.glob("fine-tuning-own_walk-*-2.json")):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(long, "run_job", lambda job: pytest.fail("trained"))
    found = long.run(tmp_path, 1, seeds=2, only_finished=True)
    assert len(found["runs"]) + len(found["rates"]) in (2, 3) and all(run in first["runs"] for run in found["runs"])


def test_fine_tuning_begins_with_the_trained_baseline(few, tmp_path, monkeypatch):
    """Without an update, both networks score what the baseline scored: the walk begins as the identity."""

    def job(setting, name, lr):
        return Job(SETTINGS[setting], NETWORKS[name], 1, str(tmp_path), lr, 3, 4)

    base = long.run_job(job("base", "Sim-Deeplab", NETWORKS["Sim-Deeplab"].lr))
    monkeypatch.setattr(long, "fit", lambda *args, **arguments: [0.0])
    after = [long.run_job(job("fine-tuning", name, 0.05)) for name in ("Sim-Deeplab", "own walk")]
    assert after[0]["test"] == after[1]["test"] == base["test"]


def some_run(network, seed, iou, setting="base", lr=0.2, val=0.5):
    return {
        "setting": setting, "network": network, "seed": seed, "lr": lr, "parameters": 1000, "seconds": 60.0,
        "val": {"mean_iou": val}, "test": {"mean_iou": iou, "boundary_iou": iou / 2},
    }  # fmt: skip


def test_differences_are_paired_and_a_part_is_told_as_a_part():
    """Seeds that only one of the two has do not count; one pair has no standard error; a setting without runs has no row."""
    runs = [some_run("Sim-Deeplab", seed, iou) for seed, iou in ((1, 0.5), (2, 0.6), (3, 0.1))]
    runs += [some_run("own walk", seed, iou) for seed, iou in ((1, 0.6), (2, 0.66))]
    runs += [some_run("Sim-Deeplab", 1, 0.5, "scribbles"), some_run("own walk", 1, 0.45, "scribbles")]
    settings = [asdict(ALL[name]) for name in ("base", "900 updates", "scribbles")]
    result = {"settings": settings, "networks": [asdict(NETWORKS["own walk"])], "runs": runs}
    rows = long_report.networks(result).splitlines()
    assert (
        rows[3] == "| own walk | 1,000 | 0.2 | 2 | 63.00 ± 4.24 | +8.00 ± 2.00 | 2 of 2 | 31.50 ± 2.12 | +4.00 ± 1.00 |"
    )
    rows = long_report.settings(result).splitlines()
    assert rows[2].startswith("| 300 updates, 640 images, 97² | 3 | 40.00 ± 26.46 | – | – | – | +8.00 ± 2.00 | – |")
    assert rows[3].startswith("| 300 updates, 640 images, 97², scribble labels | 1 | 50.00 | – | – | – | -5.00 | – |")
    assert not any("900 updates" in row for row in rows)


def test_the_crf_loss_is_compared_with_the_same_network_without_it():
    runs = [some_run("Sim-Deeplab", seed, iou, "scribbles") for seed, iou in ((1, 0.5), (2, 0.6))]
    runs += [
        some_run("Sim-Deeplab", seed, iou, "scribbles, CRF loss 0.5") for seed, iou in ((1, 0.6), (2, 0.66), (3, 0.9))
    ]
    runs += [some_run("own walk", 1, 0.2, "scribbles, CRF loss 0.5")]
    settings = [asdict(setting) for setting in ALL.values()]
    rows = long_report.crf_loss({"settings": settings, "runs": runs}).splitlines()
    assert rows[2] == "| Sim-Deeplab | – | 2 | 50.00 ± 0.00 | 55.00 ± 7.07 | – | – |"
    assert rows[3] == "| Sim-Deeplab | 0.5 | 3 | 50.00 ± 0.00 | 72.00 ± 15.87 | +8.00 ± 2.00 | 2 of 2 |"
    assert rows[4] == "| own walk | 0.5 | 1 | 50.00 | 20.00 | – | – |"


def test_a_run_with_the_crf_loss_has_it(few, tmp_path, monkeypatch):
    """On the scribbles' images in grey levels, times its weight, in every update."""
    seen = []

    def watched(scores, pictures):
        seen.append((pictures.amax((0, 2, 3)) - pictures.amin((0, 2, 3))).max().item())
        return scores.square().mean()

    monkeypatch.setattr(long, "crf_loss", watched)
    small = replace(ALL["scribbles, CRF loss 0.5"], images=8, updates=2, size=48)
    losses = []
    for weight in (0.0, 0.5):
        job = Job(
            replace(small, name=str(weight), crf_loss=weight), NETWORKS["Sim-Deeplab"], 1, str(tmp_path), 0.2, 3, 4
        )
        losses.append(long.run_job(job)["loss"])
    assert len(seen) == 2 and all(100 < grey <= 256 for grey in seen)
    assert losses[1] > losses[0]


def test_the_best_rate_is_that_of_the_validation_images():
    rates = [some_run("wider", 100, 0.9 - val, lr=lr, val=val) for lr, val in ((0.1, 0.5), (0.2, 0.7), (0.4, 0.6))]
    rates += [some_run("own walk", 100, 0.1, "fine-tuning", lr=0.1)]
    result = {"rates": rates, "settings": [asdict(ALL["base"])]}
    assert long_report.best_rates(result) == {("base", "wider"): 0.2, ("fine-tuning", "own walk"): 0.1}
    table = long_report.rates(result).splitlines()
    assert table[0] == "| learning rate | wider | own walk, fine-tuning |"
    assert table[2:4] == ["| 0.1 | 50.00 | **50.00** |", "| 0.2 | **70.00** | – |"]


def test_the_command_knows_the_budget(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(long, "run", lambda *arguments, **more: asked.append((*arguments, more)) or {})
    monkeypatch.setattr(long_report, "report", lambda result: "told")
    assert study.main(["--budget", "long", "--out", str(tmp_path), "--seeds", "2", "--parallel", "1"]) == 0
    assert asked == [(str(tmp_path), 1, 2, {"only_finished": False})] and capsys.readouterr().out == "told\n"


@pytest.fixture(scope="module")
def committed():
    return json.loads((RESULTS / "experiments_long.json").read_text())


def test_committed_numbers_are_of_the_committed_budget(committed):
    assert committed["settings"] == json.loads(json.dumps([asdict(setting) for setting in ALL.values()]))
    assert committed["networks"] == json.loads(json.dumps([asdict(network) for network in NETWORKS.values()]))
    assert committed["data"] == {"preset": "long", "classes": 5, "val": 200, "test": 400, "test_seed": 1}
    for run in committed["runs"]:
        assert run["lr"] == ALL[run["setting"]].lr.get(run["network"], NETWORKS[run["network"]].lr)
    for (setting, network), lr in long_report.best_rates(committed).items():
        assert lr == ALL[setting].lr.get(network, NETWORKS[network].lr)


def gains(committed, setting, network, figure="mean_iou"):
    """Points over the baseline, a seed each."""
    runs = [run for run in committed["runs"] if run["setting"] == setting]
    found = [100 * value for value in long_report.paired(runs, network, figure)]
    assert found, f"no pair of {network} in {setting}"
    return found


def scores(committed, setting, network):
    """Mean IoU in percent, a seed each."""
    runs = [run for run in committed["runs"] if (run["setting"], run["network"]) == (setting, network)]
    return [100 * run["test"]["mean_iou"] for run in sorted(runs, key=lambda run: run["seed"])]


def test_the_sentences_of_the_discussion_hold_in_the_committed_numbers(committed):
    """docs/results.md says these things in words; where a new run says otherwise, the words have to change."""
    own, difnet, block, pooling = (
        gains(committed, "base", name) for name in ("own walk", "DifNet", "non-local block", "image pooling")
    )
    wider, baseline = gains(committed, "base", "wider"), scores(committed, "base", "Sim-Deeplab")
    assert len(own) == len(block) == len(pooling) == len(difnet) == 5
    assert min(own + difnet) > 4 and max(own + difnet) < 10
    assert min(pooling) > 2 and max(pooling) < 6
    assert min(block) > 4 and max(block) < 7
    ahead = [a - b for a, b in zip(block, own, strict=True)]
    assert sum(0 < points < 1 for points in ahead) == 3 and sum(points < -2 for points in ahead) == 2
    weak = sorted(range(5), key=lambda seed: baseline[seed])[:2]
    assert all(ahead[seed] < -2 for seed in weak)
    assert all(a < min(b, c) for a, b, c in zip(wider, own, difnet, strict=True))
    assert abs(fmean(own) - fmean(difnet)) < 1
    assert min(gains(committed, "base", "own walk", "boundary_iou")) > 0
    parameters = {run["network"]: run["parameters"] for run in committed["runs"] if run["setting"] == "base"}
    added = {name: count - parameters["Sim-Deeplab"] for name, count in parameters.items()}
    assert added["own walk"] < 0.03 * parameters["Sim-Deeplab"] and added["non-local block"] > 4 * added["own walk"]
    assert parameters["own walk"] < 0.55 * parameters["DifNet"]
    assert min(gains(committed, "fine-tuning", "own walk")) > 2
    assert len(gains(committed, "fine-tuning", "own walk")) == 5
    for setting in ("80 images", "scribbles", "no ASPP, 129²"):
        found = gains(committed, setting, "own walk")
        assert len(found) == 5 and min(found) > 5 and max(found) < 17
        assert setting == "80 images" or abs(fmean(found) - fmean(gains(committed, setting, "DifNet"))) < 1
    assert round(fmean(scores(committed, "no ASPP, 129²", "own walk")), 1) == 91.9
    few, one = (gains(committed, "80 images", name) for name in ("DifNet", "own walk"))
    assert min(few) > 14 and max(few) < 25 and sum(a > b for a, b in zip(few, one, strict=True)) == 4
    assert min(wider := gains(committed, "no ASPP, 129²", "wider")) > 0 and max(wider) < 5
    assert min(gains(committed, "80 images", "wider")) < 0 < max(gains(committed, "80 images", "wider"))
    assert max(gains(committed, "scribbles", "wider")) < 0
    left = gains(committed, "900 updates", "own walk")
    assert len(left) == 5 and min(left) > 1 and round(max(left)) == 2
    assert abs(fmean(left) - fmean(gains(committed, "900 updates", "image pooling"))) < 0.2
    runs = [(run["setting"], run["network"], run["seed"]) for run in committed["runs"]]
    assert len(set(runs)) == len(runs) == 5 * sum(len(setting.networks) for setting in ALL.values())


def test_what_is_said_of_the_crf_loss_holds_in_the_committed_numbers(committed):
    plain, with_loss = (
        {
            run["seed"]: 100 * run["test"]["mean_iou"]
            for run in committed["runs"]
            if run["setting"] == name and run["network"] == BASELINE
        }
        for name in ("scribbles", "scribbles, CRF loss 0.5")
    )
    apart = [with_loss[seed] - plain[seed] for seed in sorted(with_loss)]
    assert len(apart) == 5 and all(3 < abs(points) < 6 for points in apart)
    assert sum(points > 0 for points in apart) == 3
    assert abs(fmean(apart)) < 2 * stdev(apart) / len(apart) ** 0.5
    walk = gains(committed, "scribbles", "own walk")
    assert all(gain > points for gain, points in zip(walk, apart, strict=True))
    found = scores(committed, "scribbles, CRF loss 0.5", "own walk")
    added = [a - b for a, b in zip(found, scores(committed, "scribbles", "own walk"), strict=True)]
    assert len(added) == 5 and 0 < fmean(added) < 1
