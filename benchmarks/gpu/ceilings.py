"""What this card can do at best: the rates and fixed costs that floors, plans and predictions rest on.

Copy bandwidth, matrix products, exponentials, the cost of a launch, of a node in a replayed graph and of a barrier across
the grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.stage import Report, first_line, microseconds, parser
from benchmarks.replay import captured


@triton.jit
def empty_kernel(out_ptr):
    tl.store(out_ptr, 1.0)


@triton.jit
def exponential_kernel(out_ptr, turns, LANES: tl.constexpr):
    """`turns` exponentials one after the other in every lane; x <- 2^-x stays near 0.64."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    x = 1.0 / (lane + 1).to(tl.float32)
    for _ in range(0, turns):
        x = tl.exp2(-x)
    tl.store(out_ptr + lane, x)


@triton.jit
def barrier_kernel(count_ptr, turns, programs):
    """`turns` times: nobody goes on before all have come. All programs must be on the card at once."""
    for turn in range(0, turns):
        seen = tl.atomic_add(count_ptr, 1, sem="acq_rel") + 1
        while seen < (turn + 1) * programs:
            seen = tl.atomic_add(count_ptr, 0, sem="acq_rel")
        tl.debug_barrier()


def copies(device: str, gigabytes: float = 2.0) -> dict[str, object]:
    """Bytes read and written per second, beyond the L2 cache."""
    source = torch.ones(int(gigabytes * 2**30 / 4), device=device)
    target = torch.empty_like(source)
    taken = microseconds(lambda: target.copy_(source), rounds=10, inner=3)
    return {"microseconds": taken, "bytes_per_s": 2 * 4 * source.numel() / (1e-6 * taken["median"])}


def products(device: str, dtype: torch.dtype, size: int = 8192) -> dict[str, object]:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = microseconds(lambda: a @ b, rounds=5, inner=3)
    return {"microseconds": taken, "flop_per_s": 2 * size**3 / (1e-6 * taken["median"])}


def exponentials(device: str, programs: int, turns: int = 20_000, lanes: int = 1024) -> dict[str, object]:
    out = torch.empty(programs * lanes, device=device)
    taken = microseconds(lambda: exponential_kernel[(programs,)](out, turns, LANES=lanes), rounds=5, inner=1)
    return {"microseconds": taken, "exps_per_s": programs * lanes * turns / (1e-6 * taken["median"])}


def launches(device: str, number: int = 500) -> dict[str, object]:
    """One empty kernel after the other: from Python, and as nodes of a replayed graph."""
    out = torch.empty(1, device=device)

    def row() -> list[Tensor]:
        for _ in range(number):
            empty_kernel[(1,)](out)
        return [out]

    eager = microseconds(row, rounds=10, inner=1)["median"] / number
    graph, _ = captured(row)
    node = microseconds(graph.replay, rounds=10, inner=1)["median"] / number
    return {"microseconds_eager": eager, "microseconds_graph_node": node}


def barriers(device: str, programs: int, turns: int = 1000) -> dict[str, object]:
    """A barrier across one program per SM, by an atomic counter in memory."""
    count = torch.zeros(1, dtype=torch.int32, device=device)

    def run() -> None:
        count.zero_()
        barrier_kernel[(programs,)](count, turns, programs)

    taken = microseconds(run, rounds=5, inner=1)
    return {"microseconds_per_barrier": taken["median"] / turns, "programs": programs}


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    device = "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    ceilings: dict[str, Callable[[], dict[str, object]]] = {
        "copy": lambda: copies(device),
        "product bf16": lambda: products(device, torch.bfloat16),
        "product fp16": lambda: products(device, torch.float16),
        "product fp32": lambda: products(device, torch.float32, 4096),
        # sixteen programs of four warps fill an SM, so that the latency of the unit is hidden
        "exponentials": lambda: exponentials(device, 16 * processors),
        "launch": lambda: launches(device),
        "barrier": lambda: barriers(device, processors),
    }
    failed = 0
    for what, measure in ceilings.items():
        if report.time_is_up:
            report.left_out(what=what)
            continue
        try:
            report.add(what=what, **measure())
        except Exception as error:
            failed += 1
            report.add(what=what, reason=first_line(error))
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
