"""Time of the parts of a DifNet: seed branch, similarity branch, diffusion; and of a baseline (Table 4)."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.networks.builder import build_model
from models.networks.difnet import DifNet

Tensors = Sequence[torch.Tensor]
Autocast = Callable[[], torch.autocast]
STRIDE = 8


def parts_of(model: DifNet, image: torch.Tensor) -> dict[str, tuple[Callable[..., Any], list[torch.Tensor]]]:
    """The parts of Fig. 1 as (function, its inputs), each callable alone on inputs of real size and kind.

    Inputs that get a gradient in training ask for one: the seed and the levels that a branch makes, not the image.
    """

    def seed_branch(image: torch.Tensor) -> torch.Tensor:
        scores = model.seed_branch(image)
        return scores if model.importance is None else model.importance(scores) * scores

    def diffusion(seed: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
        psi = model.walk.embeddings([levels[walk - 1] for walk in model.walks], seed.shape[2:])
        return model.walk.diffuse(seed, psi)

    with torch.no_grad():
        seed, levels = seed_branch(image), model.similarity_branch(image)
    learned = [made.requires_grad_() for made in (seed, *levels)]
    return {
        "Seed branch (with importance map)": (seed_branch, [image]),
        "Similarity branch": (model.similarity_branch, [image]),
        "Diffusion (Ψ and five walks)": (diffusion, [learned[0], image, *learned[1:]]),
        "whole network": (model, [image]),
    }


def measure(
    difnet: str, baseline: str, size: int, batch: int, repeats: int, device: str, amp: str, backward: bool
) -> list[dict[str, Any]]:
    """[{"network", "part", "forward": {median, deviation}, "both": … or None}], in seconds.

    Forward is inference: no gradients, running statistics. "both" is what a step of training does with the part, apart
    from loss and update: statistics of the batch, a forward that keeps what the backward needs, and the backward to the
    part's parameters and to those of its inputs that were computed. Autocast is entered anew for each forward and left
    before the backward, because it casts every weight once per entry. The image is random, activations are normalised
    by its statistics.
    """
    if size < STRIDE or batch < 1 or repeats < 1:
        raise ValueError(
            f"size must be at least {STRIDE}, the stride of the networks, batch and repeats positive; "
            f"got {size}, {batch}, {repeats}."
        )
    torch.manual_seed(0)
    image = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    autocast = partial(torch.autocast, torch.device(device).type, dtype, enabled=dtype is not None)
    results = []
    for name in (difnet, baseline):
        model = build_model(name).to(device).to(memory_format=torch.channels_last)
        normalise(model, image)
        with autocast():
            parts = parts_of(model, image) if isinstance(model, DifNet) else {"whole network": (model, [image])}
        for part, (function, inputs) in parts.items():
            model.eval()
            forward = clock(partial(inference, function, inputs, autocast), repeats, device)
            model.train()
            both = clock(partial(training, model, function, inputs, autocast), repeats, device) if backward else None
            results.append({"network": name, "part": part, "forward": forward, "both": both})
        del model
    return results


@torch.no_grad()
def normalise(model: nn.Module, image: torch.Tensor) -> None:
    """Leave the model in evaluation mode with this image's statistics: activations as large as a trained network's.

    The walks leave out what their logits make negligible, so their time depends on it.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


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
def inference(function: Callable[..., Any], inputs: Tensors, autocast: Autocast) -> None:
    with autocast():
        function(*inputs)


def training(model: nn.Module, function: Callable[..., Any], inputs: Tensors, autocast: Autocast) -> None:
    model.zero_grad(set_to_none=True)
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with autocast():
        outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
