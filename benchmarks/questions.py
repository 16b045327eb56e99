"""Every question that is asked, as tasks, the most important first: a run out of time leaves out the last."""

from __future__ import annotations

from benchmarks.cascade import CascadeTask
from benchmarks.cases import CASES, Case
from benchmarks.memory import MemoryTask
from benchmarks.peers import ON_CPU, ON_GPU
from benchmarks.psi import PsiTask
from benchmarks.table4 import PARTS, Table4Task
from benchmarks.tasks import Task

DIRECTIONS = ("forward", "forward+backward")
# cascades so large that the slow peers would take minutes of a run: they meet ours on the others
HEAVY = ("eval505_h5", "train321")
# peers do the same work whatever ψ is, so `network` inputs need not meet all of them on every case
ON_CPU_CASES = {
    ("fp32", "smooth"): ("eval505", "train321_one", "train321", "context60", "eval505_h5"),
    ("bf16", "smooth"): ("eval505", "train321_one", "context60", "train321", "eval505_h5"),
    ("fp32", "network"): ("eval505", "train321_one", "eval505_h5"),
    ("bf16", "network"): ("eval505", "train321_one"),
}
QUICK = ("ours", "dense", "sdpa")
QUICK_GPU = ("ours", "dense", "sdpa_flash", "sdpa_efficient")

SWEPT = {
    "nodes": (256, 1024, 4096, 16384),
    "classes": (1, 5, 21, 60, 150),
    "embed": (16, 32, 64, 128, 256),
    "walks": (1, 2, 5, 10),
    "batch": (1, 4, 16),
}
# what the sweeps of everything but N start from
SWEEP_BASE = Case("sweep", 1, 1024, 64, 21, walks=1)


def cascade(device: str = "cpu") -> list[Task]:
    """The paper's cascades, five walks each, by everyone."""
    if device != "cpu":
        names = ("eval505", "train321", "eval505_h5", "context60", "batch4_16k")
        return [
            CascadeTask("cascade", CASES[name], direction, kind, dtype, ON_GPU)
            for dtype, kind in (("bf16", "smooth"), ("fp16", "smooth"), ("fp32", "smooth"), ("bf16", "network"))
            for name in names
            for direction in DIRECTIONS
        ]
    tasks: list[Task] = []
    for (dtype, kind), names in ON_CPU_CASES.items():
        for name in names:
            heavy, headline = name in HEAVY, (dtype, kind) == ("fp32", "smooth")
            for direction in DIRECTIONS:
                contenders = QUICK if heavy or kind == "network" else ON_CPU
                if name == "context60":
                    contenders = (*QUICK, "dense_compiled")
                if heavy and (direction != "forward" or not headline):
                    contenders = ("ours", "sdpa")
                turn = 0 if headline else 4 if heavy else 1 if kind == "smooth" else 3
                judged = 1 if name == "eval505_h5" or (heavy and not headline) else None
                tasks.append(
                    CascadeTask("cascade", CASES[name], direction, kind, dtype, contenders, 1.5, turn, judged=judged)
                )
    return tasks


def walk(device: str = "cpu") -> list[Task]:
    """One walk of the paper's evaluation, without the rest of the cascade."""
    dtype, contenders = ("fp32", QUICK) if device == "cpu" else ("bf16", QUICK_GPU)
    return [
        CascadeTask("walk", CASES["eval505"].but(walks=1), direction, "smooth", dtype, contenders, 1.0)
        for direction in DIRECTIONS
    ]


def overhead(device: str = "cpu") -> list[Task]:
    """A call on 16 nodes: what is left is the way to the kernel."""
    contenders = QUICK if device == "cpu" else QUICK_GPU
    dtype = "fp32" if device == "cpu" else "bf16"
    return [
        CascadeTask(
            "overhead", Case("tiny", 1, 16, 64, 21, walks), direction, "smooth", dtype, contenders, 0.6, repeats=50
        )
        for walks in (1, 5)
        for direction in DIRECTIONS
    ]


def memory(device: str = "cpu") -> list[Task]:
    """Growth of the process during one cascade."""
    contenders = QUICK if device == "cpu" else QUICK_GPU
    dtype = "fp32" if device == "cpu" else "bf16"
    return [
        MemoryTask("memory", CASES[name], direction, "smooth", dtype, contenders)
        for name in ("eval505", "eval505_h5")
        for direction in DIRECTIONS
    ]


def scaling(device: str = "cpu") -> list[Task]:
    """One size grows, the others stay."""
    on_cpu = device == "cpu"
    contenders, dtype = (QUICK, "fp32") if on_cpu else (QUICK_GPU, "bf16")
    tasks: list[Task] = []
    for size, values in SWEPT.items():
        if size == "nodes" and not on_cpu:
            values = (*values, 65536)
        for value in values:
            for direction in DIRECTIONS if size == "nodes" else DIRECTIONS[:1]:
                base = SWEEP_BASE.but(name=f"sweep_{size}", **{size: value})
                seconds, turn = (1.0, 1) if size == "nodes" else (0.3, 3)
                tasks.append(CascadeTask("scaling", base, direction, "smooth", dtype, contenders, seconds, turn))
    return tasks


def psi(device: str = "cpu") -> list[Task]:
    """Ψ of the image and of the first block at 505²: the two that pool."""
    dtype = "fp32" if device == "cpu" else "bf16"
    return [
        PsiTask("psi", CASES["eval505"], "forward", "", dtype, ("ours", "layers"), 0.8, 3, channels=channels, side=side)
        for channels, side in ((3, 505), (256, 127))
    ]


def models(device: str = "cpu") -> list[Task]:
    """Table 4. On a CPU the networks take seconds, so only inference, and no row for the sum of the parts."""
    case = CASES["eval505"].but(name="table4")
    if device == "cpu":
        contenders = (*(name for name in PARTS if name != "difnet50"), *QUICK)
        return [Table4Task("models", case, "forward", "", "fp32", contenders, 2.0, 2)]
    contenders = (*PARTS, *QUICK_GPU)
    return [Table4Task("models", case, direction, "", "bf16", contenders, 4.0, 2) for direction in DIRECTIONS]


QUESTIONS = {
    "overhead": overhead,
    "walk": walk,
    "cascade": cascade,
    "memory": memory,
    "scaling": scaling,
    "psi": psi,
    "models": models,
}


def all_tasks(device: str = "cpu", only: tuple[str, ...] = ()) -> list[Task]:
    """The tasks of all questions, or of `only` these, in the order of their turns."""
    tasks = [task for name, of in QUESTIONS.items() if not only or name in only for task in of(device)]
    return sorted(tasks, key=lambda task: task.turn)
