"""The command that measures on a GPU, without one: it says so; and its stages end, fail and go on as it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import Stage

ROOT = Path(__file__).parents[2]
SAYS = "import sys; open(sys.argv[1], 'w').write('{{}}'); "
FAKES = (
    Stage("good", "writes its results", 30, ("-c", SAYS, "{out}")),
    Stage("bad", "fails afterwards", 30, ("-c", SAYS + "sys.exit(3)", "{out}")),
    Stage("slow", "never ends", 11, ("-c", SAYS + "import time; time.sleep(60)", "{out}")),
    Stage("last", "runs all the same", 30, ("-c", SAYS, "{out}")),
)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu_suite, "STAGES", FAKES)
    monkeypatch.setattr(gpu_suite, "NAMES", tuple(stage.name for stage in FAKES))


def ended(folder: Path) -> dict[str, str]:
    listed = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["stages"]
    return {entry["stage"]: entry["ended"] for entry in listed}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """From a checkout, in an empty environment; exit status 2, and no folder that could be taken for results."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "nothing was measured" in done.stderr and "CUDA" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_failing_or_endless_stage_does_not_stop_the_next(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [Stage(s.name, s.what, 1.5 if s.name == "slow" else s.seconds, s.command) for s in FAKES]
    monkeypatch.setattr(gpu_suite, "STAGES", quick)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 1
    assert ended(tmp_path) == {"good": "done", "bad": "failed with status 3", "slow": "out of time", "last": "done"}
    assert all((tmp_path / f"{name}.json").exists() for name in ("good", "bad", "slow", "last"))


def test_a_later_call_goes_on(fakes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One stage now, no time for the rest, then only what is not done yet; what is done is kept."""
    assert gpu_suite.main(["--out", str(tmp_path), "--stage", "good"]) == 0
    (tmp_path / "good.json").write_text("kept", encoding="utf-8")
    assert gpu_suite.main(["--out", str(tmp_path), "--resume", "--minutes", "0"]) == 0
    assert ended(tmp_path)["good"] == "done" and ended(tmp_path)["last"].startswith("not started")
    assert "bad, slow, last. Go on with --resume" in capsys.readouterr().out
    assert gpu_suite.main(["--out", str(tmp_path), "--resume", "--stage", "good", "last"]) == 0
    assert ended(tmp_path)["last"] == "done"
    assert (tmp_path / "good.json").read_text(encoding="utf-8") == "kept"
