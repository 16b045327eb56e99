"""Where nothing can be written, every command says so, says what to do, and leaves everything as it was."""

import builtins
import errno
import io
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models import build_model, checkpoints, evaluate, tables, train, visualize
from models.data import build_dataset
from models.data import synthetic as generator
from models.data.check import require_sound
from models.data.synthetic import generate
from models.experiments import study
from models.training.run_folder import RunFolder

LOCAL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


@contextmanager
def read_only(folder):
    """The folder as on a read-only file system: also for root, whom permissions do not hold."""

    def guard(module, name, writes):
        function = getattr(module, name)

        def guarded(path, *rest, **named):
            target = rest[0] if name == "replace" else path
            inside = isinstance(target, str | os.PathLike) and Path(target).resolve().is_relative_to(folder.resolve())
            if inside and writes(path, *rest, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
            return function(path, *rest, **named)

        patch.setattr(module, name, guarded)

    def opened_to_write(path, mode="r", *rest, **named):
        return set(mode) & set("wax+")

    with pytest.MonkeyPatch.context() as patch:
        guard(os, "open", lambda path, flags, *rest, **named: flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        guard(os, "mkdir", lambda path, *rest, **named: not os.path.exists(path))  # that it exists is said first
        guard(os, "replace", lambda *rest, **named: True)
        for module in (builtins, io):
            guard(module, "open", opened_to_write)
        yield


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def says(text, path):
    """The rule, what came, what to do."""
    return f"{path} cannot be written: [Errno 30]" in text and "untouched" in text and "choose a place" in text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"train": 8, "val": 3}, size=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    checkpoints.save(path, build_model("difnet_tiny", 4, width=4), recipe={"transform": "default"})
    return path


def command(data, out, *more) -> list[str]:
    return ["--data", str(data), "--model", "difnet_tiny", "--options", '{"width": 4}', "--recipe", "scratch",
            "--crop", "48", "--batch-size", "4", "--epochs", "2", "--out", str(out), *LOCAL,
            *map(str, more)]  # fmt: skip


def same(one, other):
    one, other = (checkpoints.load(RunFolder(folder).last) for folder in (one, other))
    return all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in one.state_dict)


def test_a_checkpoint_stays_as_it_was(tmp_path, checkpoint):
    path = tmp_path / "a.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    with read_only(tmp_path), pytest.raises(OSError) as caught:
        checkpoints.save(path, build_model("difnet_tiny", 4))
    assert says(str(caught.value), path)
    assert list(content(tmp_path).values()) == [checkpoint.read_bytes()]


def test_a_place_below_a_file_is_no_place(tmp_path, checkpoint, capsys):
    """The system's own error, without anything imitated."""
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match=r"file/a\.safetensors cannot be written.*choose a place"):
        checkpoints.save(tmp_path / "file/a.safetensors", build_model("difnet_tiny", 4))
    assert study.main(["--budget", "smoke", "--out", str(tmp_path / "file/runs")]) == 1
    assert "file/runs cannot be written" in capsys.readouterr().err
    assert content(tmp_path) == {Path("file"): b"kept"}


def test_data_may_be_read_only(data, tmp_path):
    with read_only(data):
        require_sound(build_dataset(data, "voc", "train"))
        assert train.main(command(data, tmp_path / "run", "--epochs", 1)) == 0


def test_a_run_does_not_start_where_it_cannot_be_kept(data, tmp_path, capsys):
    with read_only(tmp_path):
        assert train.main(command(data, tmp_path / "run")) == 1
    assert says(capsys.readouterr().err, tmp_path / "run")
    assert content(tmp_path) == {}


def test_a_run_that_cannot_go_on_keeps_what_it_has(data, tmp_path, capsys):
    assert train.main(command(data, tmp_path / "whole")) == 0
    assert train.main(command(data, tmp_path / "run", "--stop-after", 1)) == 0
    before = content(tmp_path / "run")
    with read_only(tmp_path / "run"):
        assert train.main(["--resume", str(tmp_path / "run"), *LOCAL]) == 1
    assert says(capsys.readouterr().err, tmp_path / "run/log.txt")
    assert content(tmp_path / "run") == before
    assert train.main(["--resume", str(tmp_path / "run"), *LOCAL]) == 0
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "metrics.jsonl"])
def test_an_end_between_two_files_loses_nothing(data, tmp_path, capsys, monkeypatch, name):
    """The disk is full when the second epoch comes to this file, and has space again when the run is resumed."""
    assert train.main(command(data, tmp_path / "whole")) == 0
    replace, run = os.replace, tmp_path / "run"

    def full(source, target):
        if Path(target) == run / name and RunFolder(run).read_metrics():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    # every epoch is the best one so far
    scores = iter([0.1, 0.2, 0.2])
    monkeypatch.setattr(train, "validation", lambda *_: lambda network: {"mean_iou": next(scores)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert train.main(command(data, run)) == 1
    assert f"{run / name} cannot be written: [Errno 28]" in capsys.readouterr().err
    assert train.main(["--resume", str(run), *LOCAL]) == 0
    assert same(run, tmp_path / "whole")
    assert [(row["epoch"], row["mean_iou"]) for row in RunFolder(run).read_metrics()] == [(1, 0.1), (2, 0.2)]
    assert checkpoints.load(run / "best.safetensors").metrics["epoch"] == 2


def test_generated_data_are_finished_or_refused(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "set"), "--train", "2", "--val", "1", "--size", "48"]
    with read_only(tmp_path), pytest.raises(SystemExit):
        generator.main(arguments)
    assert says(capsys.readouterr().err, tmp_path / "set")
    (tmp_path / "set/SegmentationClass").mkdir(parents=True)
    with read_only(tmp_path / "set/SegmentationClass"), pytest.raises(SystemExit):
        generator.main(arguments)
    assert "no finished generated set" in capsys.readouterr().err


def test_results_are_shown_although_they_cannot_be_kept(data, checkpoint, tmp_path, capsys):
    asked = ["--data", str(data), "--checkpoint", str(checkpoint), "--device", "cpu"]
    (tmp_path / "result.json").write_text("kept")
    with read_only(tmp_path):
        assert evaluate.main([*asked, "--workers", "0", "--json", str(tmp_path / "result.json")]) == 1
        told = capsys.readouterr()
        assert "3 images in" in told.out and says(told.err, tmp_path / "result.json")
        assert evaluate.main([*asked, "--workers", "0", "--predictions", str(tmp_path / "predictions")]) == 1
        assert says(capsys.readouterr().err, tmp_path / "predictions")
        assert visualize.main([*asked, "--out", str(tmp_path / "figures")]) == 1
        assert says(capsys.readouterr().err, tmp_path / "figures")
        small = ["--difnet", "difnet_tiny", "--baseline", "sim_deeplab_tiny", "--size", "33", "--repeats", "1"]
        assert tables.main(["timings", *small, "--device", "cpu", "--json", str(tmp_path / "t.json")]) == 1
        told = capsys.readouterr()
        assert "Similarity branch" in told.out and says(told.err, tmp_path / "t.json")
        assert study.main(["--budget", "smoke", "--out", str(tmp_path / "runs")]) == 1
        assert says(capsys.readouterr().err, tmp_path / "runs")
    assert content(tmp_path) == {Path("result.json"): b"kept"}
