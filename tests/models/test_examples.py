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
    """Each of a recipe's network, with the default updates."""
    runs = json.loads(every.RESULTS.read_text())
    known = [n for *_, networks in every.RECIPES.values() for n in networks for _ in range(every.SEEDS.get(n, 1))]
    assert [run["network"] for run in runs] == [n for n in known if n in {run["network"] for run in runs}]
    assert {run["updates"] for run in runs} == {200} and len({run["processor"] for run in runs}) == 1


def test_the_sentences_about_the_recipes_hold():
    """docs/examples/README.md says these things in words."""
    gain, without = {}, {}
    for run in json.loads(every.RESULTS.read_text()):
        gain.setdefault(run["network"], []).append(100 * (run["with"] - run["without"]))
        without[run["network"]] = run["without"]
    assert set(gain) == {name for *_, networks in every.RECIPES.values() for name in networks}
    assert min(gain["fcn"]) > 15 and min(gain["resnet"]) > 25
    assert min(gain["unet3d"]) > 10
    assert all(2 < points < 3 for name in ("deeplabv3", "deeplabv3plus") for points in gain[name])
    know_little = ("vit", "segformer", "upernet", "swin", "unet")
    assert all(round(abs(points)) <= 1 for name in know_little for points in gain[name])
    assert max(without[name] for name in know_little) < 0.5 < without["lraspp"] < min(without["fcn"], without["resnet"])
    assert -2 < gain["lraspp"][0] < -1
    assert [name for name, points in gain.items() if len(points) > 1] == ["fcn"]
