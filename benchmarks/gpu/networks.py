"""DifNets trained for a few steps under autocast, with the branches on two streams and on one; the share of the diffusion.

With --experiments: the comparison of networks on generated images (`models.experiments`, budget gpu), in place of that.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.gpu.stage import Report, first_line, parser
from models import build_model
from models.experiments.timings import measure
from models.training.recipes import build_optimizer, get_recipe

CLASSES = 21
NETWORKS = ("difnet18", "difnet50")
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
# the same kernels on the same numbers in another order in time: what is left is the order in which cuDNN sums, which
# fifty layers of 16 bits amplify, and for the losses a few updates
SAME_LOGITS, SAME_LOSS = 0.05, 0.02
# what is asked of the diffusion in DifNet-50: the largest share of a training step and of an inference
TRAINING_SHARE, INFERENCE_SHARE = 0.15, 0.05


@dataclass(frozen=True)
class Steps:
    """A short training: the first logits, the loss of every update, and the seconds of the median one."""

    logits: torch.Tensor
    losses: list[float]
    seconds: float
    memory_mib: float | None


def train_steps(
    name: str, amp: str, side_by_side: bool, *, size: int = 321, batch: int = 16, steps: int = 8, device: str = "cuda"
) -> Steps:
    """`steps` updates on one random batch, from the same weights each time; the first three are not timed."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES).to(device, memory_format=torch.channels_last).train()
    if not side_by_side:
        model._side_by_side = lambda image: False
    optimizer = build_optimizer(model, get_recipe("deeplab"))
    image = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    mask = torch.randint(0, CLASSES, (batch, size, size)).to(device)
    on_gpu = device.startswith("cuda")
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=amp == "fp16" and on_gpu)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    losses, seconds, first = [], [], None
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast(torch.device(device).type, AMP[amp]):
            logits = model(image)
        loss = F.cross_entropy(logits.float(), mask)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
        first = logits.detach().float().cpu() if first is None else first
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None
    assert first is not None
    return Steps(first, losses, statistics.median(seconds[3:] or seconds), memory)


def streams(name: str, amp: str, **sizes: int | str) -> dict[str, object]:
    """Two streams against one: the same logits and losses, and what it saves."""
    one, two = (train_steps(name, amp, side_by_side, **sizes) for side_by_side in (False, True))  # type: ignore[arg-type]
    losses_apart = max(abs(a - b) / abs(a) for a, b in zip(one.losses, two.losses, strict=True))
    logits_apart = ((one.logits - two.logits).abs().max() / one.logits.abs().max()).item()
    return {
        "network": name,
        "amp": amp,
        "ms_one_stream": 1e3 * one.seconds,
        "ms_two_streams": 1e3 * two.seconds,
        "speedup": one.seconds / two.seconds,
        "memory_mib": [one.memory_mib, two.memory_mib],
        "losses": two.losses,
        "losses_apart": losses_apart,
        "logits_apart": logits_apart,
        "passed": losses_apart <= SAME_LOSS and logits_apart <= SAME_LOGITS,  # False for NaN
    }


def share(difnet: str, size: int, batch: int, what: str, device: str = "cuda", repeats: int = 10) -> dict[str, object]:
    """Time of the diffusion (Ψ and walks) over that of the whole network, bf16.

    what: "inference", or "training": a step without its loss and update, which would make the share smaller.
    """
    training = what == "training"
    results = measure(difnet, "sim_deeplab_tiny", size, batch, repeats, device, "bf16", training)
    direction = "both" if training else "forward"
    seconds = {row["part"].split(" (")[0]: row[direction]["median"] for row in results if row["network"] == difnet}
    return {"diffusion": seconds["Diffusion"] / seconds["whole network"]}


def experiments(out: Path, budget: str = "gpu", device: str = "cuda") -> int:
    """Runs them in the folder `out` without its suffix, which keeps finished runs; the results go to `out` as well."""
    from models.experiments.study import main

    folder = out.with_suffix("")
    status = main(["--budget", budget, "--out", str(folder), "--device", device])
    if status == 0:
        shutil.copy(folder / "results.json", out)
    return status


def questions() -> list[tuple[dict[str, object], Callable[[], dict[str, object]]]]:
    """What is asked, and what finds the answer: streams and shares."""
    asked: list[tuple[dict[str, object], Callable[[], dict[str, object]]]] = [
        ({"network": name, "amp": amp}, partial(streams, name, amp)) for amp in AMP for name in NETWORKS
    ]
    for what, size, batch, target in (("training", 321, 16, TRAINING_SHARE), ("inference", 505, 1, INFERENCE_SHARE)):
        facts: dict[str, object] = {"network": "difnet50", "share_of": what, "size": size, "batch": batch}
        asked.append(({**facts, "target": target}, partial(share, "difnet50", size, batch, what)))
    return asked


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--experiments", action="store_true", help="compare networks; folder: --out without its suffix")
    options = made.parse_args()
    if options.experiments:
        return experiments(options.out)
    report, failed = Report(options.out, options.seconds), 0
    for asked, work in questions():
        if report.time_is_up:
            report.left_out(**asked)
            continue
        try:
            facts = work()
        except Exception as error:
            facts = {"passed": False, "reason": first_line(error)}
        failed += facts.get("passed") is False
        report.add(**{**asked, **facts})
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
