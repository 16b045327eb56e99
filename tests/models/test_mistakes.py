"""One clear line for every mistake, in every command; options of a network by name, type and range."""

import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch

from models import build_model, checkpoints, evaluate, train, visualize
from models.data.check import main as check
from models.data.synthetic import generate

LOCAL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"train": 8, "val": 2}, size=48)


def command(data, out, *more):
    return ["--data", str(data), "--model", "difnet_tiny", "--recipe", "scratch", "--crop", "48", "--batch-size", "4",
            "--epochs", "1", "--out", str(out), *LOCAL, *map(str, more)]  # fmt: skip


def one_line(main, arguments, capsys, *words):
    assert main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told and told.count("\n") == 1, told
    for word in words:
        assert word in told, told


@pytest.mark.smoke
@pytest.mark.parametrize(("options", "rule"), [
    ({"walks": 3}, "walks must be a list of numbers, distinct, increasing"), ({"walks": []}, "walks must be"),
    ({"walks": [1.5]}, "walks must be"), ({"walks": [True, 2]}, "walks must be"), ({"walks": "135"}, "walks must be"),
    ({"width": 0}, "width must be a whole number in 1…1024; got 0"), ({"width": "4"}, "width must be"),
    ({"width": True}, "width must be"), ({"width": 10**6}, "width must be"), ({"embed_dim": -1}, "embed_dim must be"),
    ({"importance": "no"}, "importance must be true or false; got 'no'"), ({"importance": 0}, "importance must be"),
    ({"blocks": [1, 1]}, "blocks must be the numbers of blocks of four stages"), ({"blocks": 2}, "blocks must be"),
    ({"head": None}, "head must be one of"), ({"stride_in": ["conv1"]}, "stride_in must be one of"),
    ({"device_map": ["cpu"]}, "'seed' and 'similarity'"), ({"diffusion": "none"}, "diffusion must be one of"),
])  # fmt: skip
def test_options_are_checked_by_type_and_range(options, rule):
    with pytest.raises(ValueError) as caught:
        build_model("difnet_tiny", 4, **options)
    assert rule in str(caught.value)


@pytest.mark.parametrize(("more", "words"), [
    (["--options", "[1]"], """--options must be JSON like '{"walks": [1, 3, 5]}'; got '[1]'"""),
    (["--options", '{"width": 0}'], "width must be"), (["--device", "foo"], "--device must be cpu, cuda, cuda:1 …; got 'foo'"),
    (["--device", "cuda:99"], "sees"), (["--workers", "-1"], "workers must be 0 or more"), (["--lr", "nan"], "lr must be"),
    (["--lr", "-1"], "lr must be"), (["--photometric", "2"], "0…1"), (["--kind", "coco"], "kind must be one of voc"),
    (["--save-every", "-1"], "save_every must not be negative"), (["--stop-after", "0"], "stop_after 1 or more"),
])  # fmt: skip
def test_mistakes_of_training(data, tmp_path, capsys, more, words):
    one_line(train.main, command(data, tmp_path / "run", *more), capsys, words)
    assert not (tmp_path / "run").exists()


def test_files_of_other_kinds_say_what_they_seem_to_be(data, tmp_path, capsys):
    """A torchvision classifier, a state dict of ours, a state dict of nothing, a list."""
    torch.manual_seed(0)
    model = build_model("difnet_tiny", 4)
    resnet = {**model.similarity_branch.state_dict(), "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    files = {
        "resnet": resnet,
        "ours": model.state_dict(),
        "other": {"encoder.weight": torch.zeros(3)},
        "empty": {"epoch": 3},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
    told = {
        "resnet": ("it seems to hold a ResNet classifier", "--backbone"),
        "other": ("it seems to hold another network", "encoder.weight"),
        "empty": ("must hold the tensors of a network", "epoch"),
    }
    for name, words in told.items():
        asked = ["--data", data, "--checkpoint", tmp_path / f"{name}.pth", "--model", "difnet_tiny"]
        one_line(evaluate.main, asked, capsys, f"{name}.pth", *words)
        one_line(checkpoints.main, ["inspect", tmp_path / f"{name}.pth"], capsys, *words)
    assert checkpoints.main(["inspect", str(tmp_path / "ours.pth")]) == 0
    assert "preprocessing not recorded" in capsys.readouterr().out
    asked = ["--data", data, "--checkpoint", tmp_path / "ours.pth", "--workers", "0", "--recipe", "default"]
    one_line(evaluate.main, asked, capsys, "does not say which network it holds", "--model")
    assert evaluate.main([*map(str, asked), "--model", "difnet_tiny"]) == 0


def test_a_run_folder_is_a_checkpoint_and_an_empty_one_is_not(data, tmp_path, capsys):
    assert train.main(command(data, tmp_path / "run", "--options", '{"width": 4}')) == 0
    assert evaluate.main(["--data", str(data), "--checkpoint", str(tmp_path / "run"), "--workers", "0"]) == 0
    (tmp_path / "empty").mkdir()
    asked = ["--data", data, "--checkpoint", tmp_path / "empty"]
    capsys.readouterr()
    one_line(evaluate.main, asked, capsys, "empty is a folder without last.safetensors")


def test_images_of_mixed_sizes_need_a_recipe_that_crops(data, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(data, mixed)
    larger = generate(tmp_path / "larger", "easy", 4, {"train": 3}, size=64)
    for folder in ("JPEGImages", "SegmentationClass"):
        for file in (larger / folder).iterdir():
            shutil.copy(file, mixed / folder / file.name)
    asked = command(mixed, tmp_path / "run", "--recipe", "generated")
    one_line(train.main, asked, capsys, "all images must have one size; got 48×48 and 64×64", "--recipe scratch")
    # unchecked, the first batch tells, also from a worker process, which is ended
    others = set(multiprocessing.active_children())
    for workers in ("0", "1"):
        more = ("--no-check", "--workers", workers, "--out", tmp_path / workers)
        one_line(train.main, [*asked, *more], capsys, "all images must have one size; train_")
        assert set(multiprocessing.active_children()) <= others


def test_a_broken_image_in_a_worker_is_one_line(data, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "JPEGImages/train_000003.jpg").write_bytes(b"nothing")
    asked = command(broken, tmp_path / "run", "--no-check", "--workers", "1", "--options", '{"width": 4}')
    one_line(train.main, asked, capsys, "train_000003.jpg: cannot be read as JPEG or PNG")


def test_a_command_that_fails_ends_although_it_has_workers(data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "JPEGImages/val_000001.jpg").write_bytes(b"nothing")
    checkpoints.save(tmp_path / "c.safetensors", build_model("difnet_tiny", 4), recipe={"transform": "default"})
    asked = ["--data", broken, "--checkpoint", tmp_path / "c.safetensors", "--workers", "1", "--device", "cpu"]
    run = [sys.executable, "-m", "models.evaluate", *map(str, asked)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode not in (0, -9) and "val_000001.jpg: cannot be read" in done.stderr


@pytest.mark.parametrize("classes", [3, 5])
def test_figures_of_another_class_count_are_refused(data, tmp_path, capsys, classes):
    checkpoints.save(tmp_path / "c.safetensors", build_model("difnet_tiny", classes), recipe={"transform": "default"})
    asked = ["--data", data, "--checkpoint", tmp_path / "c.safetensors", "--out", tmp_path / "figures"]
    one_line(visualize.main, asked, capsys, f"{classes} classes, here 4")


@pytest.mark.parametrize("workers", ["0", "1", "3"])
def test_the_check_counts_alike_with_any_number_of_workers(data, capsys, workers):
    assert check(["--data", str(data), "--workers", workers]) == 0
    assert "train: 8 images, 0 problems" in capsys.readouterr().out


def test_links_are_followed_wherever_data_is_read(data, tmp_path, capsys):
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in data.iterdir():
        (linked / part.name).symlink_to(part)
    checkpoints.save(tmp_path / "c.safetensors", build_model("difnet_tiny", 4), recipe={"transform": "default"})
    weights = ["--checkpoint", tmp_path / "c.safetensors"]
    commands = {
        check: ["--data", linked],
        evaluate.main: ["--data", linked, *weights, "--workers", "0"],
        visualize.main: ["--data", linked, *weights, "--out", tmp_path / "f", "--names", "val_000000"],
        train.main: command(linked, tmp_path / "run", "--options", '{"width": 4}'),
    }
    for main, arguments in commands.items():
        assert main([str(argument) for argument in arguments]) == 1
        assert "--follow-links" in capsys.readouterr().err
        assert main([str(argument) for argument in (*arguments, "--follow-links")]) == 0
    # and a run remembers
    assert train.main(["--resume", str(tmp_path / "run"), *LOCAL, "--epochs", "2"]) == 0


def test_the_time_of_a_crf_is_said_before(data, tmp_path, capsys):
    checkpoints.save(tmp_path / "c.safetensors", build_model("difnet_tiny", 4), recipe={"transform": "default"})
    asked = ["--data", str(data), "--checkpoint", str(tmp_path / "c.safetensors"), "--workers", "0", "--crf"]
    assert evaluate.main(asked) == 0
    out = capsys.readouterr().out
    assert out.startswith("CRF: about ") and out.index("an image, ") < out.index("mean IoU")
