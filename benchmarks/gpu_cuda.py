"""The stage `cuda` of `benchmarks.gpu_suite`: the one-launch kernels on a card, beside Triton and SDPA in one process.

The first call, Table 4's diffusion with Ψ in the launch, the error against fp64, the bits of 250 repeats, times eager and
from a graph: of a forward, and beside Triton of a forward and its backward, of the walks and of Ψ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from benchmarks import projection
from benchmarks.cascade import problem, replay_of, runner
from benchmarks.cases import CASES
from benchmarks.device import Device
from benchmarks.inputs import make_inputs
from benchmarks.models import DiffusionTruth
from benchmarks.peers import CONTENDERS, Cascade, Setting
from benchmarks.tasks import DTYPES, first_line
from benchmarks.truth import judge
from difnet_kernels import CascadedRandomWalk, cascaded_random_walk
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
LEVELS = projection.LEVELS[505]


def of_one_launch(on: Device) -> list[Item]:
    """Nothing but the reason where the kernels cannot run."""
    missing = None if on.rehearsed else BACKENDS["cuda"].unusable()
    if missing is not None:
        return [({"what": "one launch"}, lambda: {"passed": None, "reason": missing})]
    names = NAMES[:1] if on.rehearsed else NAMES
    items: list[Item] = [({"what": "first call"}, partial(_first_call, on))]
    for dtype in ("fp32",) if on.rehearsed else ("fp32", "bf16"):
        items.append(({"what": "Table 4, diffusion", "dtype": dtype}, partial(_diffusion, on, dtype)))
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
        if precision == "high":
            items += [
                ({"what": "Ψ", "dtype": dtype, "direction": direction}, partial(_psi, on, dtype, direction))
                for direction in (BOTH, FORWARD)
            ]
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
        try:
            for call in ("first", "second"):
                facts[f"{backend}_{call}_seconds"] = _until_done(on, run)
        except Exception as error:  # of one of them; what is known of the other is kept
            facts[f"{backend}_reason"] = first_line(error)
    return {**facts, "passed": "cuda_reason" not in facts}


def _diffusion(on: Device, dtype: str) -> Facts:
    """Table 4's diffusion, Ψ and the walks of an image of 505²: as one launch, and as the two operators, of this backend's
    cascade behind Triton's Ψ and of Triton alone. Each against fp64, then all in turn, eager and from a graph."""
    torch.manual_seed(0)
    walk = (
        CascadedRandomWalk([channels for channels, _ in LEVELS])
        .to(on.torch, DTYPES[dtype])
        .eval()
        .requires_grad_(False)
    )
    sides = [side if not on.rehearsed else 2 + side // 50 for _, side in LEVELS]
    levels = [
        torch.randn(1, channels, side, side, device=on.torch, dtype=DTYPES[dtype])
        for (channels, _), side in zip(LEVELS, sides, strict=True)
    ]
    seed = torch.randn(1, 21, sides[-1], sides[-1], device=on.torch, dtype=DTYPES[dtype])
    walk.backend = None if on.rehearsed else "triton"  # whose ψ the truth takes as they are
    truth = DiffusionTruth(walk, seed, levels, None)

    def two(cascade: str) -> list[torch.Tensor]:
        psi = walk.embeddings(levels, seed.shape[2:])
        return [_ours(on, cascade)(seed, psi, walk.mu, walk.beta)]

    def one() -> list[torch.Tensor]:
        walk.backend = None if on.rehearsed else "cuda"
        try:
            return [walk(seed, levels)]
        finally:
            walk.backend = None if on.rehearsed else "triton"

    calls: dict[str, Callable[[], list[torch.Tensor]]] = {
        "one_launch": one,
        "cuda_behind_triton": partial(two, "cuda"),
        "triton": partial(two, "triton"),
    }
    facts: Facts = {}
    replayed: dict[str, Callable[[], object]] = {}
    for contender, call in calls.items():
        try:
            verdict = truth.judge(call(), True)
            facts[contender] = {"error": verdict.error, "bound": verdict.bound, "right": verdict.passed}
            replayed[contender], _ = replay_of(call, on, exact=True)
        except Exception as error:  # of one contender; the others are still measured
            facts[contender] = {**facts.get(contender, {}), "reason": first_line(error)}
    _in_turn(on, {"eager": {name: calls[name] for name in replayed}, "replayed": replayed}, facts)
    return {"passed": facts["one_launch"].get("right", False) and "reason" not in facts["one_launch"], **facts}


def _psi(on: Device, dtype: str, direction: str) -> Facts:
    """Ψ of the five maps of an image of 505² in a training step, or in evaluation: this backend's kernels, Triton's, and
    the layers. Each against fp64, then all in turn, eager and from a graph."""
    sizes = [(channels, 8) for channels, _ in LEVELS[:3]] if on.rehearsed else LEVELS
    problem = projection.make_problem(_case(on, "eval505"), sizes, direction, DTYPES[dtype], on.torch)
    truth = projection.runner("layers", problem.double(), direction)()
    facts: Facts = {}
    calls: dict[str, dict[str, Callable[[], object]]] = {"eager": {}, "replayed": {}}
    for contender in ("cuda", "triton", "layers"):
        ours = contender != "layers"
        name = contender if ours and not on.rehearsed else None
        own = problem.laid_out(torch.channels_last)
        run = projection.runner("ours" if ours else "layers", own, direction, name)
        try:
            verdict = projection.judge(own, run(), truth, exact=ours or direction == FORWARD)
            facts[contender] = {"error": verdict.error, "bound": verdict.bound, "right": verdict.passed}
            calls["eager"][contender] = run
            calls["replayed"][contender], _ = replay_of(run, on, exact=ours)
        except Exception as error:  # of one contender; the others are still measured
            facts[contender] = {**facts.get(contender, {}), "reason": first_line(error)}
    _in_turn(on, calls, facts)
    return {"passed": facts["cuda"].get("right", False) and "reason" not in facts["cuda"], **facts}


def _in_turn(on: Device, calls: dict[str, dict[str, Callable[[], object]]], facts: Facts) -> None:
    """The median seconds of every contender, way by way."""
    for way, entrants in calls.items():
        samples: dict[str, list[float]] = {contender: [] for contender in entrants}
        for _ in range(2 if on.rehearsed else ROUNDS):
            for contender, call in entrants.items():
                samples[contender].append(on.seconds(call))
        for contender, seconds in samples.items():
            facts[contender][f"{way}_seconds"] = statistics.median(seconds)


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
    _in_turn(on, calls, facts)
    return {"passed": facts["cuda"].get("right", False) and "reason" not in facts["cuda"], **facts}
