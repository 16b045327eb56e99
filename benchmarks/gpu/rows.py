"""Every launch row of this GPU once, forward and backward, against fp64: the first thing to know about a new card.

Compilers have broken single tile shapes before (wrong results, illegal accesses), so each row runs in a process of
its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.correctness import judge, truth_of
from benchmarks.gpu.stage import BACKEND, Report, parser
from benchmarks.inputs import make_inputs

# (D, K, dtype, precision, N): together they reach every row that serves the architecture; N is ragged on purpose
PROBLEMS = [
    (embed, classes, dtype, nodes)
    for embed, classes in ((64, 21), (16, 5), (128, 60), (256, 60), (128, 127), (64, 150))
    for dtype in ("fp32", "bf16", "fp16")
    for nodes in ((29, 613) if embed == 64 else (613,))
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AT_ONCE = 6


def check(embed: int, classes: int, dtype: str, nodes: int) -> dict[str, object]:
    from difnet_kernels import cascaded_random_walk

    inputs = make_inputs(Case("row", 2, nodes, embed, classes, walks=2), "network", DTYPES[dtype], "cuda")
    leaves = inputs.leaves()
    state = cascaded_random_walk(leaves.seed, leaves.psi, leaves.mu, leaves.beta, backend=BACKEND)
    grads = torch.autograd.grad(state, leaves.differentiable, leaves.grad)
    verdict = judge(inputs, truth_of(inputs, backward=True), state, list(grads))
    return {"passed": verdict.passed, "error": verdict.error, "bound": verdict.bound, "worst": verdict.worst}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--one", help="a problem as JSON: check it in this process and print the verdict")
    options = made.parse_args()
    if options.one:
        print(json.dumps(check(*json.loads(options.one))))
        return 0
    report = Report(options.out)
    failed = 0
    for begin in range(0, len(PROBLEMS), AT_ONCE):
        started = []
        for problem in PROBLEMS[begin : begin + AT_ONCE]:
            command = [
                sys.executable,
                "-m",
                "benchmarks.gpu.rows",
                "--out",
                str(Path(options.out)),
                "--one",
                json.dumps(problem),
            ]
            started.append(
                (problem, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            )
        for problem, process in started:
            said, complained = process.communicate()
            if process.returncode == 0:
                facts = json.loads(said.strip().splitlines()[-1])
            else:
                facts = {"passed": False, "reason": (complained.strip().splitlines() or ["killed"])[-1][:300]}
            failed += not facts["passed"]
            report.add(embed=problem[0], classes=problem[1], dtype=problem[2], nodes=problem[3], **facts)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
