"""The command that measures on a card, without one: it says so; and a CPU in the card's place runs every stage."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_stages, gpu_suite
from benchmarks.device import REHEARSAL, Card, device
from benchmarks.gpu_suite import DONE, FIRST, LEAVE, MINUTES, NOT_STARTED, OUT_OF_TIME, Stage, entries, kept
from benchmarks.peers import ON_GPU, backend_in_use
from benchmarks.questions import QUESTIONS, all_tasks
from benchmarks.results import SCHEMA, load
from benchmarks.tables import all_tables
from difnet_kernels.backends import BACKENDS
from tests.kernels import test_on_a_card

ROOT = Path(__file__).parents[2]
HEAD = {"schema": SCHEMA, "date": "2026-01-02T03:04:05Z", "commit": "abc", "backend": "triton", "peak": None,
        "machine": {"device": "NVIDIA H100 80GB HBM3", "arch": "sm_90", "multiprocessors": 132, "torch": "2.9"}}  # fmt: skip


def suite(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(folder), *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )


def told(folder: Path) -> dict[str, str]:
    return {name: one["ended"] for name, one in json.loads((folder / "suite.json").read_text()).items()}


def test_without_a_card_it_says_so(tmp_path: Path):
    """Exit status 2, and no folder that could be taken for results."""
    done = suite(tmp_path / "out", CUDA_VISIBLE_DEVICES="", **{REHEARSAL: ""})
    assert done.returncode == 2, done.stderr
    assert "nothing was measured" in done.stderr and "CUDA" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_card_without_triton_measures_what_needs_none(monkeypatch: pytest.MonkeyPatch):
    """And without a library that nvcc compiled its tests say so, instead of passing."""

    def usable(**reasons: str | None) -> None:
        for name, reason in reasons.items():
            monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], unusable=lambda reason=reason: reason))

    monkeypatch.delenv(REHEARSAL, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    usable(cuda=None, triton="no Triton")
    assert gpu_suite.no_gpu() is None
    assert len(gpu_stages.of_one_launch_tests(Card())) > 10
    usable(cuda="no nvcc")
    assert gpu_suite.no_gpu() == "no Triton"
    ((_, answer),) = gpu_stages.of_one_launch_tests(Card())
    assert answer() == {"passed": None, "reason": "no nvcc"}


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(REHEARSAL, "1")
    monkeypatch.setenv("BENCHMARK_COMMIT", "abc")
    device.cache_clear()
    yield
    device.cache_clear()


# tests in processes of their own are the same code three times
@pytest.mark.parametrize("name", [name for name in gpu_suite.NAMES if name not in ("rows", "tests")])
def test_every_stage_is_rehearsed(rehearsal: None, name: str, tmp_path: Path):
    assert gpu_stages.main([name, "--out", str(tmp_path), "--seconds", "300"]) == 0
    found = entries(tmp_path, name)
    assert found and all(entry.get("passed") is not False for entry in found), found


# a machine with a card has torch, Triton and pytest; whatever else is installed here is not found
BARE = """
import sys
sys.modules.update(dict.fromkeys(["PIL", "scipy", "matplotlib", "skimage", "safetensors", "torchmetrics", "tqdm"]))
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "") + repr(finder)]
"""


def test_a_rehearsed_archive_fills_the_tables_and_is_no_result(tmp_path: Path):
    """In the processes of the suite, of a checkout where nothing is installed."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    known = dict(BENCHMARK_COMMIT="abc", PYTHONPATH=str(tmp_path / "bare"))
    done = suite(tmp_path / "out", "--stage", "device", "kernels", **known, **{REHEARSAL: "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(tmp_path / "out") == {"device": DONE, "kernels": DONE}
    with pytest.raises(ValueError, match="rehearsal"):
        kept(tmp_path / "out.tar.gz", tmp_path / "results")
    path = kept(tmp_path / "out.tar.gz", tmp_path)
    (results,) = load(tmp_path)
    assert results.head["commit"] == "abc" and results.name == path.stem
    block = all_tables([results])["cards"]()
    assert "rehearsal" in block and "| `eval505`, bf16 high |" in block


def test_tests_run_where_pytest_is_all_there_is_of_it(rehearsal: None):
    """Without the plugin for the time limit that pyproject.toml sets."""
    facts = gpu_stages._pytest(device("cuda"), ["tests/benchmarks/test_cases.py"], PYTEST_ADDOPTS="-p no:timeout")
    assert facts["passed"], facts


def test_the_head_names_the_backend_that_a_call_gets(monkeypatch: pytest.MonkeyPatch):
    """One that waits to be named is not it, whatever comes first."""
    waiting = replace(BACKENDS["cpu"], not_preferred=lambda problem: "it waits to be named")
    monkeypatch.setitem(BACKENDS, "cpu", waiting)
    assert backend_in_use(device("cpu")) == "reference"


def test_the_stages_come_in_the_order_of_their_value():
    names = "device probe rows kernels cuda graphs cases table4 memory soundness smoke"
    assert [stage.name for stage in FIRST] == names.split()


def test_a_stage_knows_every_name_and_the_shares_fit_the_first_call():
    assert set(gpu_stages.ITEMS) == set(gpu_suite.NAMES)
    assert sum(stage.seconds for stage in FIRST) <= 60 * MINUTES - LEAVE
    assert 60 * MINUTES < 500


def test_the_pieces_of_the_tests_of_a_card_are_all_of_them():
    names = re.findall(r"def (test_\w+)", (ROOT / gpu_stages.SOUND).read_text(encoding="utf-8"))
    widths = {piece.split()[-1] for piece in gpu_stages.ROWS}
    assert widths == {f"{embed}-{classes}" for embed, classes in test_on_a_card.WIDTHS}
    left = [name for name in names if "every_launch_row" not in name]
    assert left and all(sum(piece in name for piece in gpu_stages.OTHERS) == 1 for name in left), left


def test_launch_rows_are_asked_of_backends_that_take_them():
    """The kernels of CUDA C++ are compiled for D up to 128 and K up to 63."""
    asked, all_widths = test_on_a_card.rows(("cuda", "triton")), test_on_a_card.WIDTHS
    assert [(embed, classes) for card, embed, classes in asked if card == "triton"] == list(all_widths)
    narrow = [(embed, classes) for embed, classes in all_widths if embed <= 128 and classes <= 63]
    assert [(embed, classes) for card, embed, classes in asked if card == "cuda"] == narrow != []


def test_all_stages_together_ask_every_question_of_a_card():
    asked = {(str(task), name) for task in all_tasks(True) for name in task.contenders}
    found = set()
    for name, items in gpu_stages.ITEMS.items():
        if name not in ("rows", "soundness", "smoke", "tests", "sanitizer", "cuda", "cuda_tests"):
            tasks = [work.args[0] for about, work in items(device("cuda")) if "task" in about]  # type: ignore[attr-defined]
            found |= {(str(task), contender) for task in tasks for contender in task.contenders}
    missing = {(task, name) for task, name in asked - found if "memory" not in task}
    assert missing == set()
    assert {name for task in QUESTIONS["cascade"](True) for name in task.contenders} == set(ON_GPU)


SAYS = "import json, sys, time; out = sys.argv[sys.argv.index('--out') + 1] + '/' + sys.argv[1] + '.jsonl'\n"
FAKE = {
    "good": "open(out, 'a').write(json.dumps({'asked': 1, 'passed': True}) + '\\n')",
    "bad": "sys.exit(4)",
    "slow": "open(out, 'a').write('.'); time.sleep(60)",
    # dies of its first item, and gets on without it
    "dies": "n = len(open(out, 'a+').readlines()) or sum(1 for _ in open(out)); "
    "open(out, 'a').write(json.dumps({'begun': n}) + '\\n'); sys.exit(0 if n else 9)",
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that are a line of Python each."""
    real = subprocess.Popen

    def popen(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        return real([command[0], "-c", SAYS + FAKE[command[3]], *command[3:]], **settings)

    stages = tuple(Stage(name, name, 5) for name in FAKE)
    monkeypatch.setattr(gpu_suite.subprocess, "Popen", popen)
    monkeypatch.setattr(gpu_suite, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu_suite, "LEAST", 0.5)
    monkeypatch.setattr(gpu_suite, "STAGES", stages)
    monkeypatch.setattr(gpu_suite, "NAMES", tuple(FAKE))


def test_no_stage_stops_the_next_and_one_that_dies_goes_on(fakes: None, tmp_path: Path):
    assert gpu_suite.main(["--out", str(tmp_path / "o")]) == 1
    ended = told(tmp_path / "o")
    assert ended == {"good": DONE, "bad": "failed with status 4", "slow": OUT_OF_TIME, "dies": DONE}
    assert (tmp_path / "o.tar.gz").exists()


def test_what_has_no_time_is_begun_by_a_later_call(fakes: None, tmp_path: Path):
    gpu_suite.main(["--out", str(tmp_path / "o"), "--minutes", "0.11", "--stage", "good"])
    before = entries(tmp_path / "o", "good")
    gpu_suite.main(["--out", str(tmp_path / "o"), "--minutes", "0.1", "--resume"])
    assert told(tmp_path / "o")["dies"] == NOT_STARTED
    gpu_suite.main(["--out", str(tmp_path / "o"), "--resume", "--stage", "dies", "good"])
    assert told(tmp_path / "o")["dies"] == DONE
    assert entries(tmp_path / "o", "good") == before, "what is done is not done again"


def test_what_a_stage_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.05)"
    parent = [
        sys.executable,
        "-c",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])",
        child,
    ]
    real = subprocess.Popen
    monkeypatch.setattr(gpu_suite.subprocess, "Popen", lambda command, **settings: real(parent, **settings))
    assert gpu_suite.run(Stage("parent", "has a child", 4), tmp_path, 4)["ended"] == OUT_OF_TIME
    size = beats.stat().st_size
    assert size > 0
    time.sleep(0.5)
    assert beats.stat().st_size == size


def test_items_that_fail_die_or_have_no_time(tmp_path: Path):
    path = tmp_path / "stage.jsonl"
    (path).write_text(json.dumps({"begun": {"n": 0}}) + "\n")

    def failing() -> dict[str, Any]:
        raise RuntimeError("out of memory\nlong story")

    items: list[gpu_stages.Item] = [({"n": 0}, dict), ({"n": 1}, failing), ({"n": 2}, lambda: {"passed": True})]
    assert gpu_stages.run(items, path, 60) == 0
    found = {entry["n"]: entry for entry in entries(tmp_path, "stage")}
    assert found[0]["reason"] == "ended its process" and found[1]["reason"] == "RuntimeError: out of memory"
    assert [found[n]["passed"] for n in (0, 1, 2)] == [False, False, True]
    assert gpu_stages.run([({"n": 3}, dict)], path, -1) == gpu_suite.LEFT_OUT


def test_a_card_that_answers_no_more_ends_the_process_and_not_the_stage(tmp_path: Path):
    """An illegal address or an assertion of a kernel fails every later call of its process."""
    path, wrong = tmp_path / "stage.jsonl", []

    def kernel() -> dict[str, Any]:
        wrong.append("device-side assert")
        raise RuntimeError(wrong[0])

    def synchronize() -> None:
        if wrong:
            raise RuntimeError(wrong[0])

    items: list[gpu_stages.Item] = [
        ({"n": 0}, lambda: {"passed": False}),
        ({"n": 1}, kernel),
        ({"n": 2}, lambda: {"passed": True}),
    ]
    assert gpu_stages.run(items, path, 60, synchronize=synchronize) == gpu_suite.LOST
    assert [entry["n"] for entry in entries(tmp_path, "stage")] == [0, 1]
    wrong.clear()  # as in a process of its own
    assert gpu_stages.run(items, path, 60, synchronize=synchronize) == 0
    assert [entry["passed"] for entry in entries(tmp_path, "stage")] == [False, False, True]


def test_an_archive_without_its_card_is_refused(tmp_path: Path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "probe.jsonl").write_text(json.dumps({"asked": 1}) + "\n")
    archive = gpu_suite.pack(tmp_path / "o")
    with pytest.raises(ValueError, match="which card"):
        kept(archive, tmp_path)
    (tmp_path / "o" / "device.jsonl").write_text(json.dumps({"asked": 1, "head": HEAD}) + "\n{cut sho")
    assert kept(gpu_suite.pack(tmp_path / "o"), tmp_path).name == "gpu_h100_80gb_hbm3.json"
