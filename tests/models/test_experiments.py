"""The experiments run from data to tables, resume where they stopped, and compare what they say they compare."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from models import build_model
from models.evaluation.stages import ReadOut, stages
from models.experiments import rates, study
from models.experiments.report import best_rates, comparison, rates_table, report
from models.experiments.study import BUDGETS, twins_iou


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("experiments")
    return study.run("smoke", out, "cpu", parallel=1), out


def test_every_variant_runs_with_every_seed(result):
    result, out = result
    names = {variant.name for variant in BUDGETS["smoke"].variants()}
    assert {(run["variant"], run["seed"]) for run in result["runs"]} == {
        (name, seed) for name in names for seed in (1, 2)
    }
    assert json.loads((out / "results.json").read_text())["runs"] == result["runs"]
    text = (out / "results.md").read_text()
    assert text == report(result) and all(name in text for name in names)
    assert text.count("| ⊕5 |") == 3  # with five walks: as it is, without ASPP, without M


def test_the_last_stage_is_the_network(result):
    runs = [run for run in result[0]["runs"] if run["variant"] == "DifNet"]
    for run in runs:
        assert list(run["stages"]) == ["scores", "seed", "1", "2", "3", "4", "5"]
        assert run["stages"]["5"] == pytest.approx(run["mean_iou"], abs=1e-12)


def test_finished_runs_are_kept(result, monkeypatch):
    first, out = result

    def no_training(*args, **arguments):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(study, "train", no_training)
    again = study.run("smoke", out, "cpu", parallel=1)
    assert [run["mean_iou"] for run in again["runs"]] == [run["mean_iou"] for run in first["runs"]]


def test_runs_side_by_side_load_data_in_processes_of_their_own(tmp_path, monkeypatch):
    budget = replace(BUDGETS["smoke"], epochs=1, seeds=1, workers=1)
    monkeypatch.setitem(BUDGETS, "smoke", budget)
    first = budget.variants()[1:3]
    monkeypatch.setattr(study.Budget, "variants", lambda self: first)
    runs = study.run("smoke", tmp_path, "cpu", parallel=2)["runs"]
    assert [run["variant"] for run in runs] == [variant.name for variant in first]


@pytest.mark.parametrize("name", BUDGETS)
def test_equal_depth_and_equal_parameters_mean_what_they_say(name):
    """Equal depth: the same trunk. Equal parameters: within 15 %, as the paper's 48.8 against 44.0 million."""
    budget = BUDGETS[name]
    with torch.device("meta"):
        difnet, same_depth, *same_size = (
            build_model(v.model, budget.classes, **v.options) for v in budget.variants()[:4]
        )
    keys = set(difnet.seed_branch.trunk.state_dict())
    assert set(same_depth.seed_branch.trunk.state_dict()) == keys
    count, *counts = [sum(p.numel() for p in model.parameters()) for model in (difnet, *same_size)]
    assert [other / count for other in counts] == pytest.approx([1, 1], abs=0.15)


def test_differences_are_paired_by_seed():
    runs = [
        {"variant": name, "seed": seed, "mean_iou": score, "twins_iou": score / 2, "parameters": 1000, "lr": 0.1}
        for name, scores in (("a", (0.5, 0.6)), ("b", (0.4, 0.5)))
        for seed, score in enumerate(scores)
    ]
    last = comparison(runs, ["a", "b"], {"a": "?", "b": "?"}).splitlines()[-1]
    assert last == "| b | ? | 1,000 | 0.1 | 45.00 ± 7.07 | -10.00 ± 0.00 | 0 of 2 | 22.50 ± 3.54 |"


def test_committed_tables_are_those_of_the_committed_numbers():
    results = Path(__file__).parents[2] / "docs/results"
    numbers = json.loads((results / "experiments_cpu.json").read_text())
    assert (results / "experiments_cpu.md").read_text() == report(numbers)
    assert numbers["budget"] == "cpu" and numbers["settings"] == json.loads(json.dumps(asdict(BUDGETS["cpu"])))
    assert len(numbers["runs"]) == len(BUDGETS["cpu"].variants()) * BUDGETS["cpu"].seeds


def test_twins_are_the_classes_that_only_an_emblem_tells_apart():
    """Four classes of the preset paper: one with a texture of its own, and two alike."""
    assert twins_iou([0.9, 0.8, 0.4, 0.6], BUDGETS["cpu"]) == pytest.approx(0.5)
    assert twins_iou([0.9, 0.8, None, 0.6], BUDGETS["cpu"]) == pytest.approx(0.6)
    assert twins_iou([0.9, 0.8, 0.4, 0.6], BUDGETS["smoke"]) is None  # the preset easy has none


def test_read_out_stages_of_a_network():
    torch.manual_seed(0)
    model, image = build_model("difnet_tiny", 4, walks=(1, 5)).eval(), torch.randn(1, 3, 33, 33)
    assert stages(model) == ["scores", "seed", 1, 2]
    with torch.no_grad():
        assert torch.equal(ReadOut(model, 2)(image), model(image))
        assert not torch.equal(ReadOut(model, 1)(image), model(image))
    with pytest.raises(ValueError, match="stage must be one of"):
        ReadOut(model, 3)


def test_unknown_budget_lists_the_valid_ones(capsys, tmp_path):
    assert study.main(["--budget", "tpu", "--out", str(tmp_path)]) == 1
    assert "cpu, gpu, smoke" in capsys.readouterr().err


def test_rates_are_searched_over_families_on_a_seed_of_their_own(tmp_path, monkeypatch):
    def run_job(job):
        best = {"DifNet": 0.1, "Sim-Deeplab": 0.2, "Sim-Deeplab, deeper": 0.4}[job.variant.name.partition(" at")[0]]
        score = 0.9 - abs(job.variant.lr - best)
        return {"variant": job.variant.name, "seed": job.seed, "lr": job.variant.lr, "mean_iou": score, "seconds": 0.0}

    monkeypatch.setattr(study, "run_job", run_job)
    result = rates.search("smoke", tmp_path, "cpu", parallel=1)
    assert len(result["runs"]) == 3 * len(rates.RATES) and {run["seed"] for run in result["runs"]} == {rates.SEED}
    assert max(budget.seeds for budget in BUDGETS.values()) < rates.SEED
    assert best_rates(result) == {"DifNet": 0.1, "Sim-Deeplab": 0.2, "Sim-Deeplab, deeper": 0.4}
    assert rates_table(result).splitlines()[3] == "| 0.1 | **90.00** | 80.00 | 60.00 |"
    assert json.loads((tmp_path / "rates.json").read_text()) == json.loads(json.dumps(result))


def test_the_sentences_of_the_discussion_hold_in_the_committed_numbers():
    """docs/results.md says these things in words; where a new run says otherwise, the words have to change."""
    runs = json.loads((Path(__file__).parents[2] / "docs/results/experiments_cpu.json").read_text())["runs"]
    by_name = {name: [run for run in runs if run["variant"] == name] for name in {run["variant"] for run in runs}}
    scores = {name: [run["mean_iou"] for run in found] for name, found in by_name.items()}
    apart = {name: [a - b for a, b in zip(found, scores["DifNet"], strict=True)] for name, found in scores.items()}
    assert abs(fmean(apart["Sim-Deeplab"])) < stdev(apart["Sim-Deeplab"])
    assert max(apart["Sim-Deeplab, deeper"]) < 0 < min(apart["Sim-Deeplab, wider"])
    for part in ("walks 1, 3, 5", "walk 5 alone", "closed form", "without importance map"):
        assert abs(fmean(apart[part])) < 2 * stdev(apart[part])
    for network in ("DifNet", "Sim-Deeplab"):
        assert all(a < b for a, b in zip(scores[f"{network} without ASPP"], scores[network], strict=True))
    below = [fmean(run["mean_iou"] - run["twins_iou"] for run in found) for found in by_name.values()]
    assert min(below) > 0 and max(below) < 3 * min(below)
    stages = {stage: fmean(run["stages"][stage] for run in by_name["DifNet"]) for stage in ("scores", *"12345")}
    assert min(stages, key=stages.__getitem__) == "scores"
    assert all(run["loss"][-1] < run["loss"][-2] for run in runs)
    for run in by_name["DifNet"]:
        assert run["mu"][-1][0] == pytest.approx(run["beta"][-1][0], abs=1e-6)
    for gate in ("mu", "beta"):
        assert max(fmean(run[gate][-1][walk] for run in by_name["DifNet"]) for walk in range(5)) < 0.5
    without = [fmean(run["mu"][-1][walk] for run in by_name["DifNet without ASPP"]) for walk in range(5)]
    assert min(without[3:]) > max(without[:2])


def test_every_family_has_the_best_of_the_rates_that_were_tried():
    found = json.loads((Path(__file__).parents[2] / "docs/results/rates_cpu.json").read_text())
    first = BUDGETS["cpu"].variants()[:3]
    assert best_rates(found) == {variant.name: variant.lr for variant in first}


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from models.experiments.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_killed_run_leaves_no_worker_behind(tmp_path: Path, how: signal.Signals):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait()
    give_up = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < give_up, "the worker goes on"
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether it computes: one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
