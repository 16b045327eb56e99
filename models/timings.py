"""Time of the parts of a DifNet: seed branch, similarity branch, diffusion; and of a baseline (Table 4)."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from models.builder import build_model
from models.difnet import DifNet

Tensors = Sequence[torch.Tensor]


def parts_of(model: DifNet, image: torch.Tensor) -> dict[str, tuple[Callable[..., Any], list[torch.Tensor]]]:
    """The parts of Fig. 1 as (function, its inputs), each callable alone on inputs of real size and kind."""

    def seed_branch(image: torch.Tensor) -> torch.Tensor:
        scores = model.seed_branch(image)
        return scores if model.importance is None else model.importance(scores) * scores

    def diffusion(seed: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
        psi = model.walk.embeddings([levels[walk - 1] for walk in model.walks], seed.shape[2:])
        return model.walk.diffuse(seed, psi)

    with torch.no_grad():
        seed, levels = seed_branch(image), (image, *model.similarity_branch(image))
    return {
        "Seed branch (with importance map)": (seed_branch, [image]),
        "Similarity branch": (model.similarity_branch, [image]),
        "Diffusion (Ψ and five walks)": (diffusion, [seed, *levels]),
        "whole network": (model, [image]),
    }


def measure(
    difnet: str, baseline: str, size: int, batch: int, repeats: int, device: str, amp: str, backward: bool
) -> list[dict[str, Any]]:
    """[{"network", "part", "forward": {median, deviation}, "both": … or None}], in seconds.

    Forward runs without gradients, in eval mode; "both" is a forward that keeps what the backward needs, and the
    backward to the part's parameters and inputs. Inputs are random: time does not depend on them.
    """
    if size < 1 or batch < 1 or repeats < 1:
        raise ValueError(f"size, batch and repeats must be positive; got {size}, {batch}, {repeats}.")
    torch.manual_seed(0)
    image = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    results = []
    for name in (difnet, baseline):
        model = build_model(name).to(device, memory_format=torch.channels_last).eval()
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            parts = parts_of(model, image) if isinstance(model, DifNet) else {"whole network": (model, [image])}
            for part, (function, inputs) in parts.items():
                forward = clock(lambda f=function, x=inputs: _forward(f, x), repeats, device)
                both = clock(lambda f=function, x=inputs: _both(f, x), repeats, device) if backward else None
                results.append({"network": name, "part": part, "forward": forward, "both": both})
        del model
    return results


def clock(work: Callable[[], Any], repeats: int, device: str) -> dict[str, float]:
    """Median and deviation, in seconds, of `repeats` runs after one to warm up; the device is idle around each."""
    durations = []
    for index in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if index:
            durations.append(time.perf_counter() - started)
    return {"median": statistics.median(durations), "deviation": statistics.pstdev(durations)}


def timing_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows for people: "0.0180 ± 0.0003 s"."""

    def text(seconds: dict[str, float] | None) -> str:
        return "–" if seconds is None else f"{seconds['median']:.4f} ± {seconds['deviation']:.4f} s"

    return [[f"{row['network']}: {row['part']}", text(row["forward"]), text(row["both"])] for row in results]


@torch.no_grad()
def _forward(function: Callable[..., Any] | nn.Module, inputs: Tensors) -> None:
    function(*inputs)


def _both(function: Callable[..., Any] | nn.Module, inputs: Tensors) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
