"""The walk of docs/models.md, line by line as a new user takes it: awkward files, a signal in the middle, figures."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import checkpoints
from models.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


def lines():
    """The command lines of the document, as (module, arguments)."""
    block = (ROOT / "docs/models.md").read_text(encoding="utf-8").partition("<!-- walk:begin -->")[2]
    block = block.partition("<!-- walk:end -->")[0].replace("\\\n", " ")
    commands = [shlex.split(line) for line in block.splitlines() if line.startswith("python -m ")]
    fewer = {"--train": "24", "--val": "6", "--epochs": "6"}
    for command in commands:
        for option in fewer.keys() & set(command):
            command[command.index(option) + 1] = fewer[option]
        if command[2].rpartition(".")[2] in ("train", "evaluate", "predict", "visualize"):
            command += ["--device", "cpu"]  # where resuming is exact
    return [(command[2], command[3:]) for command in commands]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Every line, in order, in a folder of its own; what each printed. The training gets a SIGTERM after an epoch."""
    folder = tmp_path_factory.mktemp("walk")
    printed, here = {}, Path.cwd()
    os.chdir(folder)
    try:
        for index, (module, arguments) in enumerate(lines()):
            if module == "models.train" and "--resume" not in arguments:
                printed[f"{index} {module}"] = stopped(module, arguments, Path("out/walk"))
                continue
            if module == "models.train":
                arguments = [*arguments, "--workers", "1", "--no-tensorboard"]
            stream = subprocess_like(module, arguments)
            printed[f"{index} {module}"] = stream
    finally:
        os.chdir(here)
    return folder, printed


def subprocess_like(module, arguments):
    """The command in this process, which saves the start of another; its output, its exit code asserted."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = importlib.import_module(module).main(arguments)
    assert code == 0, f"{module}: {out.getvalue()}"
    return out.getvalue()


def stopped(module, arguments, run):
    """The training in a process group of its own, which gets SIGTERM as a whole, workers included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=environment, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as training:  # fmt: skip
        deadline = time.monotonic() + 90
        while training.poll() is None and time.monotonic() < deadline and len(RunFolder(run).read_metrics()) < 1:
            time.sleep(0.05)
        os.killpg(training.pid, signal.SIGTERM)
        _, told = training.communicate(timeout=30)
    assert training.returncode == 143 and "Continue with --resume" in told and "Traceback" not in told, told
    assert checkpoints.load(run).training["epoch"] >= 1
    return told


def of(printed, module):
    return next(text for key, text in printed.items() if key.endswith(module))


def test_the_check_finds_the_set_sound_and_says_what_was_turned(walked):
    _, printed = walked
    told = of(printed, "models.data.check")
    assert "24 images, 0 problems" in told and "sound, 2 warnings" in told
    assert "12 photographs have an EXIF orientation" in told and "große Klasse 03" in told


def test_the_resumed_run_ends_as_one_that_was_never_stopped(walked):
    """The same line without a signal, in this process and without workers."""
    folder, _ = walked
    arguments = next(a for module, a in lines() if module == "models.train")
    arguments = [str(folder / word) if word.startswith("out/") else word for word in arguments]
    arguments[arguments.index("--out") + 1] = str(folder / "whole")
    subprocess_like("models.train", [*arguments, "--workers", "0", "--no-tensorboard"])
    one, other = (checkpoints.load(folder / name) for name in ("out/walk", "whole"))
    assert one.training["epoch"] == other.training["epoch"] == 6
    assert all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in one.state_dict)


def test_the_evaluation_is_that_of_the_last_epoch(walked):
    folder, printed = walked
    last = RunFolder(folder / "out/walk").read_metrics()[-1]
    told = of(printed, "models.evaluate")
    assert f"{last['mean_iou']:7.2%}" in told and "boundary IoU" in told
    assert f"{last['frequency_weighted_iou']:7.2%}" in told and f"{last['mean_accuracy']:7.2%}" in told


def test_every_photograph_has_a_mask_and_an_overlay_as_it_is_seen(walked):
    folder, printed = walked
    photographs = sorted((folder / "out/photos/JPEGImages").iterdir())
    assert "30 images in" in of(printed, "models.predict") and len(photographs) == 30
    for path in photographs:
        mask = Image.open(folder / "out/predicted/masks" / f"{path.stem}.png")
        assert mask.mode == "P" and mask.size == (97, 65) and np.asarray(mask).max() < 4
        assert Image.open(folder / "out/predicted/overlays" / f"{path.stem}.png").size == (97, 65)


def test_figures_tables_and_what_the_weights_carry(walked):
    folder, printed = walked
    assert sorted(path.name for path in (folder / "out/figures").iterdir()) == ["fig2.png", "fig3.png", "fig4.png"]
    assert "| difnet_tiny | " in of(printed, "models.tables") and "| 1 | 6 |" in of(printed, "models.tables")
    told = of(printed, "models.checkpoints")
    for words in ("große Klasse 02", "pixels    default", '"images": 24', '"backend": "', "recipe    scratch"):
        assert words in told
    environment = json.loads(told.partition("machine   ")[2].splitlines()[0])
    assert environment["torch"] == torch.__version__
