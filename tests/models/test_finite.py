"""Finite or an error: broken weights are neither judged, nor drawn, nor saved over good ones."""

import json

import pytest
import torch
from PIL import Image

from models import build_model, checkpoints, evaluate, predict, visualize
from models.data.synthetic import generate
from models.training import TrainingDiverged
from tests.models.test_training import Blobs, config_of, trainer_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"val": 2}, size=48)


@pytest.fixture
def broken(tmp_path):
    """A checkpoint with a statistic that is not a number, as older versions wrote it."""
    from safetensors.torch import load_file, save_file

    path = tmp_path / "broken.safetensors"
    checkpoints.save(path, build_model("difnet_tiny", 4, width=4), recipe={"transform": "default"})
    header = checkpoints.read_header(path)
    tensors = load_file(path)
    tensors["seed_branch.trunk.bn1.running_var"][1] = float("nan")
    save_file(tensors, path, header)
    return path


@pytest.mark.parametrize(("main", "more"), [
    (evaluate.main, ["--workers", "0"]), (visualize.main, ["--out", "{}/figures"]),
])  # fmt: skip
def test_a_broken_network_is_not_judged(data, broken, tmp_path, capsys, main, more):
    asked = ["--data", str(data), "--checkpoint", str(broken), *(word.format(tmp_path) for word in more)]
    assert main(asked) == 1
    assert "val_000000: the network gave scores that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_a_broken_network_predicts_nothing(broken, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    asked = [str(tmp_path / "photo.png"), "--checkpoint", str(broken), "--out", str(tmp_path / "out")]
    assert predict.main(asked) == 1
    assert "photo.png: the network gave scores that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out/masks").exists()


@pytest.mark.parametrize("spoil", ["weight", "statistic", "momentum"])
def test_a_last_bad_update_ruins_no_checkpoint(tmp_path, spoil):
    """The loss of the update before was fine, so only the weights tell."""
    trainer = trainer_of(tmp_path / "run", config_of(epochs=2), validate=lambda network: {"mean_iou": 0.5})
    trainer.fit(stop_after=1)
    before = {path: path.read_bytes() for path in (trainer.folder.last, trainer.folder.best)}
    step = trainer.optimizer.step

    def spoiling(*arguments, **options):
        result = step(*arguments, **options)
        if trainer.step == trainer.steps - 1:
            parameter = trainer.network.seed_branch.trunk.conv1.weight
            target = {
                "weight": parameter.data,
                "statistic": trainer.network.seed_branch.trunk.bn1.running_mean,
                "momentum": trainer.optimizer.state[parameter]["momentum_buffer"],
            }[spoil]
            target[(0,) * target.dim()] = float("inf")
        return result

    trainer.optimizer.step = spoiling
    with pytest.raises(TrainingDiverged, match=r"no longer finite at epoch 2, step 3.*are from before"):
        trainer.fit()
    assert {path: path.read_bytes() for path in before} == before
    report = json.loads((tmp_path / "run/diverged.json").read_text())
    assert len(report["names"]) == 4 and report["names"][0].startswith("blob")


def test_weights_are_checked_before_a_file_is_touched(tmp_path):
    model = build_model("difnet_tiny", 4, width=4)
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, model)
    before = path.read_bytes()
    model.walk.mu_raw.data[2] = float("nan")
    with pytest.raises(checkpoints.NotFinite, match=r"1 tensors are not finite, first walk\.mu_raw"):
        checkpoints.save(path, model)
    assert path.read_bytes() == before


def test_sets_without_ground_truth_have_no_best(tmp_path):
    """A validation that cannot judge is null in the metrics, and no epoch is the best one."""
    trainer = trainer_of(tmp_path / "run", config_of(epochs=1), Blobs(), validate=lambda network: {"mean_iou": None})
    trainer.fit()
    assert trainer.folder.read_metrics()[0]["mean_iou"] is None and not trainer.folder.best.exists()
    assert "NaN" not in trainer.folder.metrics_file.read_text() and trainer.best == {}


def test_an_evaluation_without_ground_truth_is_null(data, tmp_path):
    from models.data import build_dataset

    for mask in (root := generate(tmp_path / "v", "easy", 4, {"val": 2}, size=48)).glob("SegmentationClass/*"):
        Image.new("L", Image.open(mask).size, 255).save(mask)
    metrics = evaluate.evaluate(
        build_model("difnet_tiny", 4, width=4), build_dataset(root, "voc", "val"), boundary=True
    )
    found = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "boundary_iou"):
        assert found[name] is None
    assert "mean IoU" in metrics.table() and torch.tensor(metrics.counts).sum() == 0
