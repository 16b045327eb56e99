"""What a run tells people: one line an epoch, memory, TensorBoard."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.training.config import TrainConfig
from models.training.machine import made_on
from models.training.processes import Processes


def opening(config: TrainConfig, images: int, classes: Sequence[str], steps: int, processes: Processes) -> list[str]:
    """The first lines of a log: on what, how much, and where."""
    machine, recipe = made_on(processes.device), config.recipe
    isa = f", instruction set {machine['instruction_set']}" if machine["instruction_set"] else ""
    split = f"split {config.train_split}" + (", zero is void" if config.reduce_zero_label else "")
    return [
        f"data {config.data or '(given by the program)'}, {config.kind}, {split}: {images} images",
        f"classes {len(classes)}: {', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}",
        f"iterations {recipe.epochs * steps}: {recipe.epochs} epochs of {steps} updates of {recipe.batch_size} images",
        f"device {machine['device']}, {processes.size} process{'es' if processes.size > 1 else ''}, "
        f"{torch.get_num_threads()} threads; backend {machine['backend']}{isa}, torch {machine['torch']}",
    ]


def gates(network: nn.Module) -> dict[str, list[float]]:
    """{"mu": [...], "beta": [...]} of the walks; empty for a network without."""
    walk = getattr(network, "walk", None)
    return {} if walk is None else {"mu": walk.mu.tolist(), "beta": walk.beta.tolist()}


def summary(row: dict[str, Any], best: dict[str, Any]) -> str:
    """One line for people: an epoch's metrics and where μ and β stand."""
    parts = [f"epoch {row['epoch']:3d}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['images_per_s']:.1f} images/s"]
    parts.append(f"{row['memory_mb']:.0f} MB")
    if row.get("mean_iou") is not None:
        parts.append(f"mIoU {100 * row['mean_iou']:.2f} (best {100 * best['mean_iou']:.2f}, epoch {best['epoch']})")
    for name, key in (("μ", "mu"), ("β", "beta")):
        if key in row:
            parts.append(f"{name} " + " ".join(f"{value:.3f}" for value in row[key]))
    return "  ".join(parts)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far, in MB: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def open_board(folder: Path) -> Any:
    """A TensorBoard writer into `folder`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard.") from error
    return SummaryWriter(folder / "tensorboard")


def write_board(board: Any, row: dict[str, Any]) -> None:
    """Every number of an epoch's metrics; lists (μ, β) as one curve an entry."""
    for key, value in row.items():
        for i, number in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(number, int | float):
                board.add_scalar(f"{key}/{i + 1}" if isinstance(value, list) else key, number, row["epoch"])
