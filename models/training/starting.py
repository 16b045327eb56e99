"""How a network of a run begins: its first weights, and its batch norm."""

from collections.abc import Sequence

import torch
from torch import nn

from models import checkpoints
from models.networks.builder import has_bottlenecks
from models.networks.deeplab import Network
from models.training.config import TrainConfig
from models.training.processes import Processes
from models.weights import guard


def load_initial_weights(network: Network, config: TrainConfig, classes: Sequence[str]) -> str:
    """Fill `network` as the configuration says; returns where the weights come from, for the log."""
    if config.init and config.backbone:
        raise ValueError("--init brings the weights of the whole network: leave --backbone out.")
    if config.init:
        return _from_network(network, config, classes)
    if config.backbone:
        checkpoints.load_backbone(network, config.backbone)
        return f"trunks from {config.backbone}{_stride(config)}, the rest from scratch"
    return "from scratch"


def _from_network(network: Network, config: TrainConfig, classes: Sequence[str]) -> str:
    assert config.init is not None
    checkpoint = checkpoints.load(config.init)
    if checkpoint.preprocessing is None and config.init_preprocessing is None:
        raise ValueError(
            f"{config.init} does not say how pixels became the numbers that it was trained on. Say it with "
            "--preprocessing default or --preprocessing authors."
        )
    guard.require(
        checkpoint,
        config.init,
        model=config.model,
        options=config.options,
        preprocessing=config.recipe.transform,
        advice="For other rates with the pixels of the weights: --preprocessing. Options: --options.",
    )
    report = checkpoints.load_into(network, checkpoint, config.reset_head)  # names the shapes if the counts differ
    if not config.reset_head:
        guard.require(checkpoint, config.init, classes=classes, advice="--reset-head starts the head afresh.")
    return config.init + (f" (fresh: {', '.join(report.reset)})" if report.reset else "")


def _stride(config: TrainConfig) -> str:
    if not has_bottlenecks(config.model):
        return ""
    stride = config.options.get("stride_in", "conv1")
    if stride == "conv2":
        return " (bottlenecks stride in conv2, as torchvision's do)"
    return " (bottlenecks stride in conv1, as asked; torchvision's weights want conv2)"


def batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def prepare_batch_norm(network: nn.Module, mode: str, processes: Processes) -> None:
    """Apply the batch_norm option of `TrainConfig`."""
    if mode == "sync":
        if processes.device.type != "cuda":
            raise ValueError("--batch-norm sync needs GPUs: torch has no synchronised batch norm for CPUs.")
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place: a network is no batch norm itself
    if mode == "frozen":
        for module in batch_norms(network):
            module.requires_grad_(False)


def pixel_weights(weights: Sequence[float] | None, classes: int, device: torch.device) -> torch.Tensor | None:
    """How much a pixel of each mask value counts, (256,): 0 for void. None if all classes count alike."""
    if weights is None:
        return None
    if len(weights) != classes:
        raise ValueError(f"class_weights must be one number for each of {classes} classes; got {len(weights)}.")
    table = torch.zeros(256)
    table[:classes] = torch.tensor(weights)
    return table.to(device)
