"""Every question that is asked, as tasks, the most important first: a run out of time leaves out the last."""

from __future__ import annotations

from benchmarks.cascade import CascadeTask
from benchmarks.cases import CASES, Case
from benchmarks.memory import MemoryTask, PsiMemoryTask
from benchmarks.peers import ON_CPU, ON_GPU
from benchmarks.psi import ALL, GRIDS, LEVELS, PsiTask, named
from benchmarks.replay import ReplayTask
from benchmarks.table4 import PARTS, Table4Task
from benchmarks.tasks import Task

DIRECTIONS = ("forward", "forward+backward")
# turns: a run of six minutes asks every question once and then the rest of the headline; the record asks everything
ONCE, HEADLINE, RECORD, LAST = range(4)
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
    "nodes": (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "classes": (1, 5, 21, 60, 150),
    "embed": (16, 32, 64, 128, 256),
    "walks": (1, 2, 5, 10),
    "batch": (1, 4, 16),
}
FIRST_NODES = (256, 1024, 4096)
HUGE = 65536  # a dense matrix of 16 GiB
# what the sweeps of everything but N start from
SWEEP_BASE = Case("sweep", 1, 1024, 64, 21, walks=1)


def cascade(device: str = "cpu") -> list[Task]:
    """The paper's cascades, five walks each, by everyone."""
    if device != "cpu":
        names = ("eval505", "train321", "eval505_h5", "context60", "batch4_16k")
        return [
            CascadeTask("cascade", CASES[name], direction, kind, dtype, ON_GPU)
            for dtype, kind in (("bf16", "smooth"), ("fp32", "smooth"), ("fp16", "smooth"), ("bf16", "network"))
            for name in names
            for direction in DIRECTIONS
        ]
    tasks: list[Task] = []
    for (dtype, kind), names in ON_CPU_CASES.items():
        for name in names:
            for direction in DIRECTIONS:
                contenders = _cpu_contenders(name, direction, kind)
                judged = 1 if name in HEAVY else None
                turn = _cpu_turn(name, direction, dtype, kind)
                seconds = 4.0 if (dtype, kind) == ("fp32", "smooth") else 2.0
                tasks.append(
                    CascadeTask(
                        "cascade", CASES[name], direction, kind, dtype, contenders, seconds, turn, judged=judged
                    )
                )
    return tasks


def replay(device: str = "cpu") -> list[Task]:
    """The small cascades by graph replay, beside whoever can be captured; a CPU has no graphs."""
    if device == "cpu":
        return []
    return [
        ReplayTask("replay", CASES[name], direction, "smooth", dtype, ON_GPU, seconds=1.0)
        for dtype in ("bf16", "fp32")
        for name in ("eval505", "train321", "eval505_h5", "context60")
        for direction in DIRECTIONS
    ]


def _cpu_contenders(name: str, direction: str, kind: str) -> tuple[str, ...]:
    if name in HEAVY and kind == "network" and direction != "forward":
        return ("ours", "sdpa")
    if name in HEAVY or kind == "network":
        return QUICK
    return (*QUICK, "dense_compiled") if name == "context60" else ON_CPU


def _cpu_turn(name: str, direction: str, dtype: str, kind: str) -> int:
    if (dtype, kind) == ("fp32", "smooth"):
        return ONCE if name in ("eval505", "train321_one") else HEADLINE
    once = name == "eval505" and direction == "forward" and f"{dtype}-{kind}" != "bf16-network"
    return ONCE if once else RECORD


def walk(device: str = "cpu") -> list[Task]:
    """One walk of the paper's evaluation, without the rest of the cascade."""
    dtype, contenders = ("fp32", QUICK) if device == "cpu" else ("bf16", QUICK_GPU)
    return [
        CascadeTask("walk", CASES["eval505"].but(walks=1), direction, "smooth", dtype, contenders, 1.5)
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
    """Growth of the process during one cascade of the paper, and during one walk against N."""
    contenders = QUICK if device == "cpu" else QUICK_GPU
    dtype = "fp32" if device == "cpu" else "bf16"
    tasks: list[Task] = [
        MemoryTask("memory", CASES[name], direction, "smooth", dtype, contenders)
        for name in ("eval505", "eval505_h5")
        for direction in DIRECTIONS
    ]
    # the dense formula asks for more than the machine has, which the row says; SDPA would take minutes
    huge = MemoryTask(
        "memory", CASES["batch4_16k"], DIRECTIONS[1], "smooth", dtype, ("ours", "dense") if device == "cpu" else contenders,
        turn=LAST,
    )  # fmt: skip
    tasks.append(huge)
    return tasks + [
        MemoryTask("memory", _swept("nodes", nodes), direction, "smooth", dtype, contenders, turn=RECORD)
        for nodes in SWEPT["nodes"]
        if nodes >= FIRST_NODES[0]
        for direction in DIRECTIONS
    ]


def scaling(device: str = "cpu") -> list[Task]:
    """One size grows, the others stay."""
    on_cpu = device == "cpu"
    contenders, dtype = (QUICK, "fp32") if on_cpu else (QUICK_GPU, "bf16")
    tasks: list[Task] = []
    for size, values in SWEPT.items():
        if size == "nodes" and not on_cpu:
            values = (*values, HUGE)
        for value in values:
            for direction in DIRECTIONS if size == "nodes" else DIRECTIONS[:1]:
                seconds, turn = (1.0, RECORD) if size == "nodes" else (0.4, ONCE)
                if size == "nodes" and value in FIRST_NODES:
                    turn = ONCE
                tasks.append(
                    CascadeTask("scaling", _swept(size, value), direction, "smooth", dtype, contenders, seconds, turn)
                )
    if on_cpu:
        huge = _swept("nodes", HUGE)
        tasks.append(CascadeTask("scaling", huge, "forward", "smooth", dtype, contenders, 1.0, LAST, sampled=512))
    return tasks


def _swept(size: str, value: int) -> Case:
    return SWEEP_BASE.but(name=f"sweep_{size}", **{size: value})


def psi(device: str = "cpu") -> list[Task]:
    """Ψ of the five levels of DifNet-50, together and one by one; evaluation, and a training step."""
    contenders = named(("ours", "layers", "folded", "compiled"))
    tasks: list[Task] = []
    for side, case in GRIDS.items():
        for direction in DIRECTIONS:
            # 16 bits would decide ties of a training step by their rounding, differently for everyone
            dtype = "fp32" if device == "cpu" or direction != "forward" else "bf16"
            for levels in (ALL, *((level,) for level in range(len(LEVELS[side])))):
                first = side == 321 and direction == "forward" and levels in (ALL, (0,))
                seconds, turn = 4.0 if levels == ALL else 2.0, ONCE if first else RECORD
                tasks.append(
                    PsiTask("psi", case, direction, "", dtype, contenders, seconds, turn, side=side, levels=levels)
                )
    return tasks


def psi_memory(device: str = "cpu") -> list[Task]:
    """Growth of the process during Ψ of the five levels."""
    return [
        PsiMemoryTask(
            "psi_memory", case, direction, "", "fp32", named(("ours", "layers")),
            turn=ONCE if side == 321 else RECORD, side=side, levels=levels,
        )
        for side, case in GRIDS.items()
        for levels in (ALL, (0,))
        for direction in DIRECTIONS
    ]  # fmt: skip


def models(device: str = "cpu") -> list[Task]:
    """Table 4. A network takes seconds on a CPU, so its backward is left to the record."""
    case = CASES["eval505"].but(name="table4")
    contenders = (*PARTS, *(QUICK if device == "cpu" else QUICK_GPU))
    dtype, seconds = ("fp32", 2.0) if device == "cpu" else ("bf16", 4.0)
    return [
        Table4Task("models", case, direction, kind, dtype, contenders, seconds, turn)
        for direction, kind, turn in zip(DIRECTIONS, ("", "training"), (ONCE, RECORD), strict=True)
    ]


QUESTIONS = {
    "overhead": overhead,
    "walk": walk,
    "cascade": cascade,
    "replay": replay,
    "memory": memory,
    "scaling": scaling,
    "psi": psi,
    "psi_memory": psi_memory,
    "models": models,
}


def all_tasks(device: str = "cpu", only: tuple[str, ...] = ()) -> list[Task]:
    """The tasks of all questions, or of `only` these, in the order of their turns."""
    tasks = [task for name, of in QUESTIONS.items() if not only or name in only for task in of(device)]
    return sorted(tasks, key=lambda task: task.turn)
