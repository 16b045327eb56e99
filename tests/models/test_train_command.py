"""`python -m models.train` as users call it: generated data, one process and two, and what it says about mistakes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import checkpoints, train
from models.data import SegmentationDataset, build_dataset, build_transform
from models.data.synthetic import generate
from models.evaluate import evaluate
from models.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"train": 8, "val": 3}, size=48)


def command(data, out, *more) -> list[str]:
    return ["--data", str(data), "--model", "difnet_tiny", "--options", '{"width": 4}', "--recipe", "scratch",
            "--crop", "48", "--batch-size", "4", "--epochs", "2", "--out", str(out), *LOCAL,
            *map(str, more)]  # fmt: skip


def test_a_run_from_data_to_checkpoint(data, tmp_path, capsys):
    assert train.main(command(data, tmp_path / "run")) == 0
    folder = RunFolder(tmp_path / "run")
    rows = folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["mean_iou"] <= 1 and len(row["per_class_iou"]) == 4 for row in rows)
    best = checkpoints.load(folder.best)
    assert best.metrics["mean_iou"] == max(row["mean_iou"] for row in rows)
    assert len(best.classes) == 4 and best.recipe["name"] == "scratch" and best.options == {"width": 4}
    assert "weights: from scratch" in capsys.readouterr().out


def test_stop_after_and_resume_equal_one_run(data, tmp_path):
    assert train.main(command(data, tmp_path / "whole")) == 0
    assert train.main(command(data, tmp_path / "halves", "--stop-after", 1)) == 0
    assert train.main(["--resume", str(tmp_path / "halves"), *LOCAL, "--workers", "2"]) == 0
    one, other = (checkpoints.load(tmp_path / name / "last.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in one.state_dict)
    assert one.metrics["per_class_iou"] == other.metrics["per_class_iou"]


def test_tensorboard_gets_every_number(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [argument for argument in command(data, tmp_path / "run") if argument != "--no-tensorboard"]
    assert train.main(arguments) == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "lr", "mean_iou", "mu/1", "beta/5"} <= tags
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def run_two_processes(arguments: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "models.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_two_processes_validate_what_they_save(data, tmp_path):
    """Running statistics differ between processes; the ones in the checkpoint are the ones to report about."""
    walks = (
        "--options",
        '{"width": 4, "walks": [1, 3]}',
    )  # no stage of the trunk without a reader, or it would not run
    run_two_processes(command(data, tmp_path / "run", "--epochs", "1", *walks))
    model, checkpoint = checkpoints.restore(tmp_path / "run/last.safetensors")
    metrics = evaluate(model, build_dataset(data, "voc", "val", build_transform("default")))
    assert checkpoint.metrics["mean_iou"] == pytest.approx(metrics.mean_iou, abs=1e-3)
    assert checkpoint.metrics["pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy, abs=1e-3)


def test_two_processes_equal_one(data, tmp_path):
    """Gradients are sums over all pixels divided by their global count, so who sums them cannot matter.

    Batch norm is frozen, because its statistics belong to a process. What is left is the order of fp32 sums, 2⁻²⁴ each,
    over four updates: 1e-5 of the weights' size is generous.
    """
    frozen = ("--batch-norm", "frozen", "--lr", "0.01")
    assert train.main(command(data, tmp_path / "one", *frozen)) == 0
    run_two_processes(command(data, tmp_path / "two", *frozen))
    one, two = (checkpoints.load(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert two.state_dict.keys() == one.state_dict.keys()
    for key, ours in one.state_dict.items():
        size = max(1e-2, ours.abs().max().item()) if ours.numel() else 1.0
        torch.testing.assert_close(
            two.state_dict[key], ours, rtol=0, atol=1e-5 * size, msg=lambda m, k=key: f"{k}: {m}"
        )
    losses = [[row["loss"] for row in RunFolder(tmp_path / name).read_metrics()] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    # no image counted twice; a pixel between two classes may flip
    assert one.metrics["pixel_accuracy"] == pytest.approx(two.metrics["pixel_accuracy"], abs=1e-3)


@pytest.mark.parametrize("change, message", [
    (["--model", "difnet51"], "Unknown model 'difnet51'. Valid names: difnet18"),
    (["--recipe", "adam"], "Unknown recipe 'adam'. Valid names: deeplab, authors, scratch"),
    (["--options", "{walks}"], "--options must be JSON"),
    (["--options", '{"walk": 3}'], "has no option walk"),
    (["--data", "/nowhere"], "/nowhere"),
    (["--kind", "coco"], "kind must be one of"),
    (["--batch-size", "9"], "less than one batch of 9"),
    (["--init", "absent.safetensors"], "absent.safetensors"),
    (["--batch-norm", "sync"], "needs GPUs"),
])  # fmt: skip
def test_mistakes_are_one_clear_line(data, tmp_path, capsys, change, message):
    assert train.main(command(data, tmp_path / "run", *change)) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_new_run_needs_data_model_and_out(capsys):
    assert train.main(["--model", "difnet18"]) == 1
    assert "--data, --out" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(data, tmp_path, capsys):
    assert train.main(command(data, tmp_path / "run", "--epochs", "1")) == 0
    before = (tmp_path / "run/last.safetensors").read_bytes()
    assert train.main(command(data, tmp_path / "run")) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run/last.safetensors").read_bytes() == before


def test_a_failed_start_does_not_block_its_folder(data, tmp_path):
    assert train.main(command(data, tmp_path / "run", "--init", "absent.safetensors")) == 1
    assert train.main(command(data, tmp_path / "run", "--epochs", "1")) == 0


def test_a_signal_ends_with_the_exit_code_of_sigterm(data, tmp_path, capsys, monkeypatch):
    """The signal arrives while the second image is loaded."""
    load = SegmentationDataset.__getitem__
    asked = []

    def load_and_kill(self, index):
        asked.append(index)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(self, index)

    monkeypatch.setattr(SegmentationDataset, "__getitem__", load_and_kill)
    assert train.main(command(data, tmp_path / "run")) == 143
    assert "--resume" in capsys.readouterr().err
    assert checkpoints.load(tmp_path / "run/last.safetensors").training["step"] == 0
    assert train.main(["--resume", str(tmp_path / "run"), *LOCAL]) == 0


def test_training_never_starts_on_a_broken_set(tmp_path, capsys):
    root = generate(tmp_path / "voc", "easy", 4, {"train": 4, "val": 1}, size=48)
    broken = sorted((root / "JPEGImages").glob("train*"))[2]
    broken.write_bytes(broken.read_bytes()[:300])
    assert train.main(command(root, tmp_path / "run")) == 1
    assert broken.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
