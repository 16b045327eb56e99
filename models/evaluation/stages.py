"""A DifNet read out before its end: what the score, the seed, or the state after some walks would predict."""

from typing import Any

import torch
from torch import nn

from models.data import SegmentationDataset
from models.evaluate import evaluate
from models.networks.deeplab import upsample
from models.networks.difnet import DifNet


class ReadOut(nn.Module):
    """The network as if it ended at `stage`: "scores" (x), "seed" (s = M x), or a number of walks (yᵗ).

    Maps an image to logits at its size, as a network does, so that everything that evaluates networks takes it.
    """

    def __init__(self, model: DifNet, stage: str | int) -> None:
        super().__init__()
        if stage not in stages(model):
            raise ValueError(f"stage must be one of {stages(model)}; got {stage!r}.")
        self.model, self.stage = model, stage

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        details = self.model(image, return_details=True)
        maps: dict[str | int, torch.Tensor] = {
            "scores": details.scores,
            "seed": details.seed,
            **dict(enumerate(details.steps, start=1)),
        }
        return upsample(maps[self.stage], image)


def stages(model: DifNet) -> list[str | int]:
    """All stages of a network, in the order of the computation; the last one is the network itself."""
    return ["scores", "seed", *range(1, len(model.walk.mu) + 1)]


def mean_iou_by_stage(model: DifNet, dataset: SegmentationDataset, **options: Any) -> dict[str, float]:
    """Mean IoU of every stage, by its name; options as of `evaluate`."""
    return {str(stage): evaluate(ReadOut(model, stage), dataset, **options).mean_iou for stage in stages(model)}
