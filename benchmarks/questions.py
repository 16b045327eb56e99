"""Every question that is asked, as tasks. A run out of time leaves out those of the last turns."""

from __future__ import annotations

from benchmarks.cascade import CascadeTask
from benchmarks.cases import CASES, TINY, swept
from benchmarks.memory import MemoryTask, ProjectionMemoryTask
from benchmarks.models import PARTS, ModelsTask
from benchmarks.peers import ON_CPU, ON_GPU, QUICK, WIDE
from benchmarks.projection import ALL, GRIDS, LEVELS, ProjectionTask, named
from benchmarks.steady_state import SOLVERS, SteadyStateTask
from benchmarks.tasks import Task

DIRECTIONS = ("forward", "forward+backward")
# turns: six minutes ask every question once and go on with the headline; twelve ask everything
ONCE, HEADLINE, RECORD = range(3)
# cascades so large that the slow peers would take minutes of a run: they meet ours on the others
HEAVY = ("eval505_h5", "train321")
# peers do the same work whatever ψ is, so only `smooth` inputs meet all of them on every case
CASCADES_ON_CPU = {
    ("fp32", "smooth"): ("eval505", "train321_one", "train321", "context60", "eval505_h5"),
    ("bf16", "smooth"): ("eval505", "train321_one", "context60", "train321"),
    ("fp32", "maps"): ("eval505", "train321_one"),
    ("bf16", "maps"): ("eval505",),
    ("fp32", "network"): ("eval505", "eval505_h5"),
    ("bf16", "network"): ("eval505", "train321_one"),
}
CASCADES_ON_GPU = {
    ("bf16", "smooth"): ("eval505", "train321", "eval505_h5", "context60", "batch4_16k"),
    ("fp32", "smooth"): ("eval505", "train321", "context60", "batch4_16k"),
    ("bf16", "maps"): ("eval505",),
    ("bf16", "network"): ("eval505", "train321"),
}
SWEPT = {
    "nodes": (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "classes": (1, 5, 21, 60, 150),
    "embed": (16, 64, 128, 256, 384, 768, 1024),
    "walks": (1, 2, 5, 10),
    "batch": (1, 4, 16),
}
FIRST_NODES = (256, 1024, 4096)


def cascade(on_gpu: bool) -> list[Task]:
    """The paper's cascades, five walks each, by everyone."""
    tasks: list[Task] = []
    for (dtype, kind), names in (CASCADES_ON_GPU if on_gpu else CASCADES_ON_CPU).items():
        headline = (dtype, kind) == (headline_dtype(on_gpu), "smooth")
        for name in names:
            for direction in DIRECTIONS:
                contenders = _contenders(on_gpu, name, direction, kind, headline)
                seconds = 1.0 if on_gpu else 4.0 if headline else 2.0
                turn = ONCE if name in ("eval505", "train321_one") and (headline or direction == "forward") else RECORD
                turn = min(turn, HEADLINE) if headline else turn
                judged = 1 if name in (*HEAVY, "batch4_16k") else None
                about = ("cascade", CASES[name], direction, kind, dtype, contenders, seconds, turn)
                tasks.append(CascadeTask(*about, judged=judged))
    return tasks


def headline_dtype(on_gpu: bool) -> str:
    return "bf16" if on_gpu else "fp32"


def _contenders(on_gpu: bool, name: str, direction: str, kind: str, headline: bool) -> tuple[str, ...]:
    if on_gpu:
        return ON_GPU if name == "eval505" and headline else QUICK[True]
    if name in HEAVY and kind != "smooth" and direction != "forward":
        return ("ours", "sdpa")
    if name in HEAVY or kind != "smooth":
        return QUICK[False]
    return (*QUICK[False], "dense_compiled") if name == "context60" else ON_CPU


def replay(on_gpu: bool) -> list[Task]:
    """The small cascades from CUDA graphs, beside whoever can be captured; a CPU has no graphs."""
    return [
        CascadeTask("replay", CASES[name], direction, "smooth", dtype, QUICK[True], 1.0, turn, repeats=5, replayed=True)
        for dtype, turn in (("bf16", ONCE), ("fp32", RECORD))
        for name in ("eval505", "train321", "eval505_h5", "context60")
        for direction in DIRECTIONS
        if on_gpu
    ]


def walk(on_gpu: bool) -> list[Task]:
    """One walk of the paper's evaluation, without the rest of the cascade."""
    case = CASES["eval505"].but(walks=1)
    return [
        CascadeTask("walk", case, direction, "smooth", headline_dtype(on_gpu), QUICK[on_gpu], 1.5)
        for direction in DIRECTIONS
    ]


def wide(on_gpu: bool) -> list[Task]:
    """One walk on the features of a foundation model, of scores for 21 classes and of values as wide as the features."""
    tasks: list[Task] = []
    for classes in (21, 768):
        case = CASES["eval505"].but(name=f"wide768_{classes}", embed=768, classes=classes, walks=1)
        for direction in DIRECTIONS:
            about = ("wide", case, direction, "smooth", headline_dtype(on_gpu), WIDE[on_gpu])
            tasks.append(CascadeTask(*about, 1.0))
    return tasks


def overhead(on_gpu: bool) -> list[Task]:
    """A call on 16 nodes: what is left is the way to the kernel."""
    return [
        CascadeTask("overhead", TINY.but(walks=walks), direction, "smooth", headline_dtype(on_gpu),
                    QUICK[on_gpu], 0.6, repeats=50)
        for walks in (1, 5)
        for direction in DIRECTIONS
    ]  # fmt: skip


def memory(on_gpu: bool) -> list[Task]:
    """Growth of the process during one cascade of the paper, and during one walk against N."""
    cases = [(CASES[name], ONCE) for name in ("eval505", "eval505_h5")]
    cases += [(swept("nodes", nodes), RECORD) for nodes in SWEPT["nodes"] if nodes >= FIRST_NODES[0]]
    return [
        MemoryTask("memory", case, direction, "smooth", headline_dtype(on_gpu), QUICK[on_gpu], turn=turn)
        for case, turn in cases
        for direction in DIRECTIONS
    ]


def scaling(on_gpu: bool) -> list[Task]:
    """One size grows, the others stay."""
    tasks: list[Task] = []
    for size, values in SWEPT.items():
        for value in values:
            for direction in DIRECTIONS if size in ("nodes", "embed") else DIRECTIONS[:1]:
                turn = ONCE if size == "nodes" and value in FIRST_NODES else RECORD
                about = ("scaling", swept(size, value), direction, "smooth", headline_dtype(on_gpu))
                tasks.append(CascadeTask(*about, QUICK[on_gpu], 0.8 if size == "nodes" else 0.4, turn))
    return tasks


def projection(on_gpu: bool) -> list[Task]:
    """Ψ of the five levels of DifNet-50, together, and for the smaller image one by one; evaluation and training step."""
    contenders = named(("ours", "layers", "folded", "compiled"))
    tasks: list[Task] = []
    for side, case in GRIDS.items():
        for direction in DIRECTIONS:
            # 16 bits would decide ties of a training step by their rounding, differently for everyone
            dtype = "bf16" if on_gpu and direction == "forward" else "fp32"
            for levels in (ALL, *((level,) for level in range(len(LEVELS[side])) if side == 321)):
                turn = ONCE if side == 321 and direction == "forward" and levels in (ALL, (0,)) else RECORD
                about = ("projection", case, direction, "", dtype, contenders, 4.0 if levels == ALL else 1.5, turn)
                tasks.append(ProjectionTask(*about, side=side, levels=levels))
    return tasks


def projection_memory(on_gpu: bool) -> list[Task]:
    """Growth of the process during Ψ of the five levels."""
    return [
        ProjectionMemoryTask("projection_memory", case, direction, "", "fp32", named(("ours", "layers")),
                             turn=ONCE if side == 321 else RECORD, side=side, levels=levels)
        for side, case in GRIDS.items()
        for levels in (ALL, (0,))
        for direction in DIRECTIONS
    ]  # fmt: skip


def models(on_gpu: bool) -> list[Task]:
    """Table 4. A network takes seconds on a CPU, so its backward is left to the record."""
    case, contenders = CASES["eval505"].but(name="table4"), (*PARTS, *QUICK[on_gpu])
    return [
        ModelsTask("models", case, direction, kind, headline_dtype(on_gpu), contenders, 4.0 if on_gpu else 2.0, turn)
        for direction, kind, turn in zip(DIRECTIONS, ("", "training"), (ONCE, RECORD), strict=True)
    ]


def steady_state(on_gpu: bool) -> list[Task]:
    """Eq. 2 to a tolerance, on one ψ, on a CPU: the minutes of a card go to the kernels."""
    return [
        SteadyStateTask("steady_state", CASES[name].but(walks=1), direction, kind, "fp32", tuple(SOLVERS), 3.0, turn)
        for name, turn in (("train321_one", ONCE), ("eval505", RECORD))
        for kind in ("smooth", "network")
        for direction in DIRECTIONS
        if not on_gpu
    ]


EVERY = (overhead, walk, wide, cascade, replay, memory, scaling, projection, projection_memory, models, steady_state)
QUESTIONS = {of.__name__: of for of in EVERY}


def all_tasks(on_gpu: bool = False, only: tuple[str, ...] = ()) -> list[Task]:
    """The tasks of all questions, or of `only` these, in the order of their turns."""
    tasks = [task for name, of in QUESTIONS.items() if not only or name in only for task in of(on_gpu)]
    return sorted(tasks, key=lambda task: task.turn)
