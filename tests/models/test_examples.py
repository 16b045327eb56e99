"""The recipes of docs/examples run: they begin with the scores of the plain network, train, and draw their figure."""

import importlib
import json
import math

import pytest

from docs.examples import every


@pytest.mark.parametrize(
    ("recipe", "network"),
    [(recipe, network) for recipe, (*_, networks) in every.RECIPES.items() for network in networks],
)
def test_a_recipe_runs(recipe, network, tmp_path, capsys):
    """Equality at step 0, and scores kept by saving, are asserted by the recipe itself; what three updates are worth is not."""
    if (lacks := every.missing(recipe)) is not None:
        pytest.skip(lacks)
    main = importlib.import_module(f"docs.examples.{recipe}").main
    found = main(["--network", network, "--updates", "3", "--out", str(tmp_path)])
    assert set(found) == {"without", "with"} and all(0 <= iou <= 1 and math.isfinite(iou) for iou in found.values())
    assert (tmp_path / f"{network}.png").stat().st_size > 5000
    kept = json.loads((tmp_path / f"{network}-0.json").read_text())
    assert (kept["network"], kept["updates"], kept["with"]) == (network, 3, found["with"])
    told = capsys.readouterr().out
    assert f"{network}, 3 more with the walk: mIoU" in told and "difference: " in told


def test_what_is_finished_is_collected(tmp_path):
    for network in ("fcn", "vit"):
        (tmp_path / f"{network}-0.json").write_text(json.dumps({"network": network}) + "\n")
    every.main(["--out", str(tmp_path), "--only-finished", "--results", str(tmp_path / "all.json")])
    assert json.loads((tmp_path / "all.json").read_text()) == [{"network": "fcn"}, {"network": "vit"}]


def test_the_committed_results_are_of_the_recipes():
    """A run of every network and seed, with the default updates, and figures of one kind of processor."""
    runs = json.loads(every.RESULTS.read_text())
    asked = {
        (n, seed) for *_, networks in every.RECIPES.values() for n in networks for seed in range(every.SEEDS.get(n, 1))
    }
    assert {(run["network"], run["seed"]) for run in runs} == asked and len(runs) == len(asked)
    assert {run["updates"] for run in runs} == {200} and len({run["processor"] for run in runs}) == 1
