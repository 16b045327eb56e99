"""The stage `cuda` of `benchmarks.gpu_suite`: the one-launch kernels on a card, beside Triton and SDPA in one process.

The first call, the error against fp64, the bits of 250 repeats, times eager and from a graph: of a forward, and beside
Triton of a forward and its backward.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from benchmarks.cascade import problem, replay_of, runner
from benchmarks.cases import CASES
from benchmarks.device import Device
from benchmarks.inputs import make_inputs
from benchmarks.peers import CONTENDERS, Cascade, Setting
from benchmarks.tasks import DTYPES, first_line
from benchmarks.truth import judge
from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import BACKENDS

Facts = dict[str, Any]
Item = tuple[Facts, Callable[[], Facts]]
FORWARD, BOTH = "forward", "forward+backward"
# batch 1, where launches count, and a batch that fills the card
NAMES = ("eval505", "train321", "eval505_h5", "batch4_16k")
WITH_BACKWARD = ("eval505", "batch4_16k")  # of the first two settings
# the most telling first: the time of the stage may end before its items
SETTINGS = (("fp32", "high"), ("bf16", "high"), ("fp32", "medium"), ("fp16", "high"))
PEERS = ("sdpa_efficient", "sdpa_flash", "sdpa_cudnn")
REPEATS, ROUNDS = 250, 30


def of_one_launch(on: Device) -> list[Item]:
    """Nothing but the reason where the kernels cannot run."""
    missing = None if on.rehearsed else BACKENDS["cuda"].unusable()
    if missing is not None:
        return [({"what": "one launch"}, lambda: {"passed": None, "reason": missing})]
    names = NAMES[:1] if on.rehearsed else NAMES
    items: list[Item] = [({"what": "first call"}, partial(_first_call, on))]
    for dtype, precision in SETTINGS[:1] if on.rehearsed else SETTINGS:
        asked = {"dtype": dtype, "precision": precision}
        for name in names:
            backward = name in WITH_BACKWARD and (dtype, precision) in SETTINGS[:2]
            items += [  # one after the other: both have one truth
                (
                    {"what": "beside others", "case": name, **asked, "direction": direction},
                    partial(_beside, on, name, dtype, precision, direction),
                )
                for direction in ((FORWARD, BOTH) if backward else (FORWARD,))
            ]
        items.append(({"what": "repeats", **asked}, partial(_repeats, on, dtype, precision)))
    return items


def _case(on: Device, name: str) -> Any:
    return CASES[name].but(nodes=64) if on.rehearsed else CASES[name]


def _ours(on: Device, backend: str, precision: str = "high") -> Cascade:
    # a rehearsal has the CPU's kernels in the place of both
    name = None if on.rehearsed else backend
    return cast(Cascade, partial(cascaded_random_walk, precision=precision, backend=name))


def _first_call(on: Device) -> Facts:
    """Seconds of the first and of the second call in a process: what a user waits for, before and after."""
    inputs = make_inputs(_case(on, "eval505"), "smooth", DTYPES["bf16"], on.torch)
    on.synchronize()
    facts: Facts = {}
    for backend in ("cuda", "triton"):
        run = runner(_ours(on, backend), inputs, FORWARD)
        for call in ("first", "second"):
            facts[f"{backend}_{call}_seconds"] = _until_done(on, run)
    return {**facts, "passed": True}


def _until_done(on: Device, run: Callable[[], object]) -> float:
    def whole() -> None:
        run()
        on.synchronize()

    return Device().seconds(whole)


def _repeats(on: Device, dtype: str, precision: str) -> Facts:
    """The same bits, and those of an image alone."""
    inputs = make_inputs(_case(on, "batch4_16k"), "smooth", DTYPES[dtype], on.torch)
    ours = _ours(on, "cuda", precision)

    def walk(images: slice) -> torch.Tensor:
        with torch.no_grad():
            return ours(inputs.seed[images], [p[images] for p in inputs.psi], inputs.mu, inputs.beta)

    first = walk(slice(None))
    others = sum(not torch.equal(walk(slice(None)), first) for _ in range(2 if on.rehearsed else REPEATS))
    alone = torch.equal(walk(slice(0, 1)), first[:1])
    return {"passed": others == 0 and alone, "runs_with_other_bits": others, "image_alone_has_its_bits": alone}


def _beside(on: Device, name: str, dtype: str, precision: str, direction: str) -> Facts:
    """Each contender against fp64, then all in turn, eager and from a graph: the median seconds of five walks."""
    case = _case(on, name)
    inputs, truth = problem(case, "smooth", dtype, on.torch, 1)
    setting = Setting(case, DTYPES[dtype], on, direction)
    cascades = {backend: _ours(on, backend, precision) for backend in ("cuda", "triton")}
    facts: Facts = {}
    for peer in PEERS if direction == FORWARD else ():
        reason = CONTENDERS[peer].why_not(setting) if not on.rehearsed else "a rehearsal"
        if reason is None:
            cascades[peer] = CONTENDERS[peer].build(setting)
        else:
            facts[peer] = {"reason": reason}
    calls: dict[str, dict[str, Callable[[], object]]] = {"eager": {}, "replayed": {}}
    for contender, cascade in cascades.items():
        ours = contender in ("cuda", "triton")
        try:
            verdict = judge(
                inputs.first(1), truth, *runner(cascade, inputs.first(1), direction)(), precision=precision, fp32_logits=ours
            )  # fmt: skip
            facts[contender] = {"error": verdict.error, "bound": verdict.bound, "right": verdict.passed}
            calls["eager"][contender] = run = runner(cascade, inputs, direction)
            calls["replayed"][contender], _ = replay_of(run, on, exact=ours)
        except Exception as error:  # of one contender; the others are still measured
            facts[contender] = {**facts.get(contender, {}), "reason": first_line(error)}
    for way, entrants in calls.items():
        samples: dict[str, list[float]] = {contender: [] for contender in entrants}
        for _ in range(2 if on.rehearsed else ROUNDS):
            for contender, call in entrants.items():
                samples[contender].append(on.seconds(call))
        for contender, seconds in samples.items():
            facts[contender][f"{way}_seconds"] = statistics.median(seconds)
    return {"passed": facts["cuda"].get("right", False) and "reason" not in facts["cuda"], **facts}
