"""Signals as clusters send them: to every process of the group, at any time. `last` is whole, and the end is near."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models import checkpoints, train
from models.data.synthetic import generate
from models.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ("--device", "cpu", "--no-tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"train": 16, "val": 3}, size=48)


def command(data, out, *more):
    return ["--data", str(data), "--model", "difnet_tiny", "--options", '{"width": 4}', "--recipe", "scratch",
            "--crop", "48", "--batch-size", "4", "--epochs", "200", "--out", str(out), *LOCAL, *more]  # fmt: skip


def signalled_when(arguments, ready, number, prefix=("-m", "models.train")):
    """Run the command in a group of its own; once `ready()`, signal all of the group. (exit code, stderr, seconds)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, *prefix, *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline and started.poll() is None:
            time.sleep(0.02)
        assert started.poll() is None, started.communicate()[1]
        asked = time.monotonic()
        os.killpg(started.pid, number)
        _, told = started.communicate(timeout=30)
        return started.returncode, told, time.monotonic() - asked
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)


def test_a_signal_to_the_group_saves_and_ends(data, tmp_path):
    """With the default four workers, which get the signal, too: torch would let it kill them."""
    folder = RunFolder(tmp_path / "run")
    code, told, seconds = signalled_when(command(data, folder.path), folder.metrics_file.exists, signal.SIGTERM)
    assert code == 143 and seconds < 10, told
    assert "Continue with --resume" in told and "Traceback" not in told
    checkpoint = checkpoints.load(folder.last)
    assert checkpoint.training["epoch"] >= 1 and all(t.isfinite().all() for t in checkpoint.state_dict.values())
    # and it goes on, for one more epoch
    until = str(checkpoint.training["epoch"] + 1)
    assert train.main(["--resume", str(folder.path), *LOCAL, "--workers", "0", "--stop-after", until]) == 0


SLOW_VALIDATION = """
import sys, time
from pathlib import Path
from models import train
from models.data import SegmentationDataset

load, out = SegmentationDataset.__getitem__, Path(sys.argv[1])

def slow(self, index):
    if not self.transform.train:
        (out / "validating").touch()
        time.sleep(3)
    return load(self, index)

SegmentationDataset.__getitem__ = slow
sys.exit(train.main(sys.argv[2:]))
"""


def test_a_signal_during_validation_ends_at_once(data, tmp_path):
    """Every image takes three seconds; `last` was written before. Resuming finishes the epoch as if nothing had been."""
    script, out = tmp_path / "slow.py", tmp_path / "run"
    script.write_text(f"sys_path = {str(ROOT)!r}\nimport sys\nsys.path.insert(0, sys_path)\n{SLOW_VALIDATION}")
    arguments = [str(tmp_path), *command(data, out, "--workers", "2", "--epochs", "1")]
    ready = (tmp_path / "validating").exists
    code, told, seconds = signalled_when(arguments, ready, signal.SIGTERM, prefix=(str(script),))
    assert code == 143 and seconds < 10 and "Traceback" not in told, told
    position = checkpoints.load(out).training
    assert (position["epoch"], position["step"]) == (0, 4) and not RunFolder(out).metrics_file.exists()
    assert train.main(["--resume", str(out), *LOCAL, "--workers", "0"]) == 0
    assert train.main([*command(data, tmp_path / "whole"), "--epochs", "1", "--workers", "0"]) == 0
    one, other = checkpoints.load(out), checkpoints.load(tmp_path / "whole")
    assert all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in one.state_dict)
    assert one.metrics["mean_iou"] == other.metrics["mean_iou"]


def test_a_worker_outlives_signals_but_not_its_parent(tmp_path):
    """The handler in a child of its own: a signal is nothing while the parent lives; without one, it ends the worker."""
    source = (
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from models.data import endure_signals, signals_wait\n"
        "with signals_wait():\n"
        "    worker = os.fork()\n"
        "if worker == 0:\n"
        "    endure_signals()\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.05)\n"
        "sys.stdin.readline()\n"
        "os.kill(worker, signal.SIGTERM); time.sleep(0.3)\n"
        "print('alive' if os.waitpid(worker, os.WNOHANG) == (0, 0) else 'dead', worker, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.stdin.write("\n")
        parent.stdin.flush()
        state, worker = parent.stdout.readline().split()
    assert state == "alive"
    os.kill(int(worker), signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()
