"""The cascade replayed from a CUDA graph: the small cases, where launches would otherwise be what is measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.correctness import judge, truth_of
from benchmarks.gpu.stage import BACKEND, Report, first_line, floors, microseconds, named, parser
from benchmarks.inputs import Inputs, make_inputs

# five walks by graph replay: microseconds that docs/performance.md promises, (must, goal)
TARGETS = {"eval505": (65, 45), "eval505_h5": (300, 240), "train321": (145, 115)}
SETTINGS = (("bf16", torch.bfloat16, "high"), ("fp32", torch.float32, "high"), ("fp32", torch.float32, "medium"))


def replayed(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """`call` captured after a warm-up on a side stream, and the tensors that a replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = call()
    return graph, made


def calls(inputs: Inputs, precision: str) -> dict[str, Callable[[], list[Tensor]]]:
    from difnet_kernels import cascaded_random_walk

    def forward() -> list[Tensor]:
        with torch.no_grad():
            y = cascaded_random_walk(
                inputs.seed, inputs.psi, inputs.mu, inputs.beta, precision=precision, backend=BACKEND
            )
        return [y]

    leaves = inputs.leaves()

    def both() -> list[Tensor]:
        y = cascaded_random_walk(leaves.seed, leaves.psi, leaves.mu, leaves.beta, precision=precision, backend=BACKEND)
        return [y.detach(), *torch.autograd.grad(y, leaves.differentiable, leaves.grad)]

    return {"forward": forward, "forward+backward": both}


def measure(case: Case, name: str, dtype: torch.dtype, precision: str, report: Report) -> int:
    inputs = make_inputs(case, "smooth", dtype, "cuda")
    truth = truth_of(inputs, backward=True)
    forward_floor, backward_floor = floors(case)
    failed = 0
    for direction, call in calls(inputs, precision).items():
        facts: dict[str, object] = {"case": case.name, "dtype": name, "precision": precision, "direction": direction}
        try:
            eager = [x.clone() for x in call()]
            verdict = judge(inputs, truth, eager[0], eager[1:] or None, fp32_logits=precision == "high")
            facts |= {"error": verdict.error, "bound": verdict.bound, "passed": verdict.passed or precision == "medium"}
            graph, made = replayed(call)
            graph.replay()
            torch.cuda.synchronize()
            facts["replay_equals_eager"] = all(torch.equal(a, b) for a, b in zip(eager, made, strict=True))
            if facts["passed"] and facts["replay_equals_eager"]:
                taken = microseconds(graph.replay)
                floor = forward_floor + (backward_floor if direction != "forward" else 0.0)
                facts |= {"microseconds": taken, "h200_floor": floor, "fraction_of_h200_floor": floor / taken["median"]}
                if direction == "forward" and case.name in TARGETS:
                    facts["must"], facts["goal"] = TARGETS[case.name]
            else:
                failed += 1
        except Exception as error:
            failed += 1
            facts |= {"passed": False, "reason": first_line(error)}
        report.add(**facts)
    return failed


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    failed = 0
    for name, dtype, precision in SETTINGS:
        for case in named(("eval505", "train321", "eval505_h5", "context60")):
            if report.time_is_up:
                report.left_out(case=case.name, dtype=name, precision=precision)
                continue
            failed += measure(case, name, dtype, precision, report)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
