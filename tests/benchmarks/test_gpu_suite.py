"""The command that measures on a GPU, without one: it says so; and its stages end, fail and go on as it promises."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_suite, machine, plots
from benchmarks.cases import CASES
from benchmarks.gpu import suite_tests
from benchmarks.gpu.cases import chosen, remaining
from benchmarks.gpu_suite import Stage
from benchmarks.peers import UNCOMPILED
from benchmarks.questions import DIRECTIONS, QUESTIONS, all_tasks
from benchmarks.results import Results
from benchmarks.tables import all_tables
from benchmarks.tasks import MEASURED, Task

ROOT = Path(__file__).parents[2]
SAYS = "import sys; open(sys.argv[1], 'w').write('{{}}'); "
FAKES = (
    Stage("good", "writes its results", 30, ("-c", SAYS, "{out}")),
    Stage("bad", "fails afterwards", 30, ("-c", SAYS + "sys.exit(4)", "{out}")),
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
    quick = [Stage(s.name, s.what, 5 if s.name == "slow" else s.seconds, s.command) for s in FAKES]
    monkeypatch.setattr(gpu_suite, "STAGES", quick)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 1
    assert ended(tmp_path) == {"good": "done", "bad": "failed with status 4", "slow": "out of time", "last": "done"}
    assert all((tmp_path / f"{name}.json").exists() for name in ("good", "bad", "slow", "last"))


GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
BEATS = "import sys, time\nwhile True: open(sys.argv[1], 'a').write('.'); time.sleep(0.05)"


def test_what_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    ended = gpu_suite.run(Stage("parent", "has a child", 4, ("-c", GRANDCHILD, BEATS, "{out}")), tmp_path, 4)
    beats = (tmp_path / "parent.json").stat().st_size
    assert ended["ended"] == "out of time" and beats > 0
    time.sleep(0.5)
    assert (tmp_path / "parent.json").stat().st_size == beats


def test_a_stage_that_stopped_itself_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with what it has, in twice the time; a call without --resume starts anew."""
    counts = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit(3)"
    monkeypatch.setattr(gpu_suite, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu_suite, "STAGES", (Stage("half", "leaves out", 15, ("-c", counts, "{out}", "{seconds}")),))
    monkeypatch.setattr(gpu_suite, "NAMES", ("half",))
    for arguments, written in (((), "10 "), (("--resume",), "10 25 "), ((), "10 ")):
        assert gpu_suite.main(["--out", str(tmp_path), *arguments]) == 0
        assert ended(tmp_path) == {"half": "out of time"}
        assert (tmp_path / "half.json").read_text(encoding="utf-8") == written


def test_cases_go_on_with_the_rows_that_they_have(tmp_path: Path) -> None:
    tasks = [Task("cascade", CASES["eval505"], direction, contenders=("ours", "dense")) for direction in DIRECTIONS]
    done = [tasks[0].row(name, name, status=MEASURED) for name in ("ours", "dense")]
    half = [tasks[1].row("ours", "ours", status=MEASURED), tasks[1].row("dense", "dense")]
    out = tmp_path / "cases.json"
    out.write_text(json.dumps({"rows": [row.as_dict() for row in done + half]}), encoding="utf-8")
    assert remaining(tasks, out) == tasks[1:]
    out.write_text(json.dumps({"rows": [tasks[1].row("dense", "dense", status=MEASURED).as_dict()]}), encoding="utf-8")
    assert remaining(tasks, out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.1.json", "cases.2.json"]


def test_every_table_and_figure_has_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a table or figure of the GPU is made from is asked by a stage of the default call."""
    asked = set()

    def tasks(results: Results, question: str) -> list[Task]:
        if results.kind == "gpu":
            asked.add(question)
        return QUESTIONS[question]("cpu" if results.kind == "cpu" else "cuda")

    monkeypatch.setattr(Results, "tasks", tasks)
    found = {kind: Results(kind) for kind in ("cpu", "gpu")}
    for name, table in all_tables(found).items():
        if "gpu" in name:
            table()
    plots.figures(found)
    answered = questions_of(tuple(stage for stage in gpu_suite.STAGES if stage.name not in gpu_suite.ALONE))
    assert asked and asked <= answered


ASKED = {"device", "rows", "correctness", "soundness", "cases", "compilers", "memory", "graphs", "kernels", "table4"}


def test_what_was_asked_for_fits_one_call() -> None:
    """Even if every stage takes all of its share: no answer hangs on how fast the others were."""
    assert {stage.name for stage in gpu_suite.FIRST} == ASKED
    assert sum(stage.seconds for stage in gpu_suite.FIRST) <= 60 * gpu_suite.MINUTES - gpu_suite.LEAVE
    assert gpu_suite.STAGES[: len(gpu_suite.FIRST)] == gpu_suite.FIRST
    assert len(set(gpu_suite.NAMES)) == len(gpu_suite.NAMES)
    # the rest needs no more than a call at a time
    assert all(
        stage.seconds <= 60 * gpu_suite.MINUTES for stage in gpu_suite.LATER if stage.name not in gpu_suite.ALONE
    )


def questions_of(stages: tuple[Stage, ...], *options: str) -> set[str]:
    return {
        stage.command[stage.command.index("--question") + 1] if "--question" in stage.command else "cascade"
        for stage in stages
        if "benchmarks.gpu.cases" in stage.command and all(option in stage.command for option in options)
    }


def test_everyone_meets_ours_sooner_or_later() -> None:
    """The quick peers on everything in the first call, who needs a compiler on one case there and on the rest later."""
    assert {"cascade", "replay"} <= questions_of(gpu_suite.FIRST, "--peers", "quick")
    assert questions_of(gpu_suite.FIRST, "--case", "eval505", "--dtype", "bf16") == {"cascade"}
    whole = tuple(stage for stage in gpu_suite.LATER if not {"--peers", "--case"} & set(stage.command))
    assert {"cascade", "replay"} <= questions_of(whole)


@pytest.mark.parametrize("question", ["cascade", "replay"])
def test_a_choice_of_tasks_keeps_ours_and_the_quick_peers(question: str) -> None:
    tasks = all_tasks("cuda", (question,))
    quick = chosen(tasks, "quick", None, None)
    assert [str(task) for task in quick] == [str(task) for task in tasks]
    assert all(set(UNCOMPILED) == set(task.contenders) and "ours" in task.contenders for task in quick)
    assert {"sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "dense"} <= set(UNCOMPILED)
    one = chosen(tasks, "all", "eval505", "bf16")
    assert one and {(task.case.name, task.dtype) for task in one} == {("eval505", "bf16")}
    assert all({"flex", "dense_compiled", *UNCOMPILED} <= set(task.contenders) for task in one)


def test_what_failed_waits_for_what_has_not_run(
    fakes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_suite.main(["--out", str(tmp_path), "--stage", "bad"]) == 1
    assert gpu_suite.main(["--out", str(tmp_path), "--resume", "--stage", "bad", "last", "good"]) == 1
    begun = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert begun == ["bad", "good", "last", "bad"]


def test_results_of_test_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files in real processes: one passes on the reference, one does not exist."""
    monkeypatch.setattr(machine, "describe", lambda device: {"device": device})
    monkeypatch.setattr(suite_tests, "BACKEND", "reference")
    out = tmp_path / "tests.json"
    arguments = [
        "suite_tests",
        "--out",
        str(out),
        "--seconds",
        "60",
        "--smoke",
        "--files",
        "kernels/test_sizes.py",
        "nowhere.py",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    assert suite_tests.main() == 1
    found = {entry["file"]: entry for entry in json.loads(out.read_text(encoding="utf-8"))["entries"]}
    assert found["kernels/test_sizes.py"]["outcome"]["passed"] > 0 and found["kernels/test_sizes.py"]["failures"] == []
    assert found["nowhere.py"]["status"] == 4 and "nowhere.py" in found["nowhere.py"]["reason"]


def test_the_suite_tests_files_that_exist() -> None:
    files = suite_tests.files()
    assert len(files) > 15 and all((suite_tests.TESTS / file).exists() for file in files)
    assert suite_tests.NETWORKS in files and not any(Path(file).name in suite_tests.ELSEWHERE for file in files)


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
