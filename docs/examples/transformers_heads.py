"""A walk in a network of transformers: python -m docs.examples.transformers_heads [--network segformer|upernet]

`decode_head` takes the maps of all stages and returns scores, so that the walk is one line, with a walk for each stage:

    network.decode_head = DiffusedHead(network.decode_head, channels)

`save_pretrained` keeps the walk, but `from_pretrained` of their class does not: it builds the head of the configuration, finds
no weights under its names, and leaves head and walk at random with no more than a warning. A class of your own that wraps the
head when it is built reads them again: `DiffusedSegformer` and `DiffusedUperNet` below. The recipe shows both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from difnet_kernels import DiffusedHead
from docs.examples.common import CLASSES, compare, options_of


class DiffusedSegformer(SegformerForSemanticSegmentation):
    """For `from_pretrained` on what `save_pretrained` wrote of a network whose head was wrapped."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__(config)
        self.decode_head = DiffusedHead(self.decode_head, config.hidden_sizes)


class DiffusedUperNet(UperNetForSemanticSegmentation):
    """The same for UperNet, whose head has the channels of its backbone."""

    def __init__(self, config: UperNetConfig) -> None:
        super().__init__(config)
        self.decode_head = DiffusedHead(self.decode_head, self.backbone.channels)


DIFFUSED = {"segformer": DiffusedSegformer, "upernet": DiffusedUperNet}


def build(name: str) -> nn.Module:
    """With random weights; `SegformerForSemanticSegmentation.from_pretrained("nvidia/...")` takes the same line."""
    if name == "segformer":
        sizes = {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 4]}
        return SegformerForSemanticSegmentation(
            SegformerConfig(**sizes, decoder_hidden_size=64, drop_path_rate=0.0, num_labels=CLASSES)
        )
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3"],
    )
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=32,
            pool_scales=[1, 2],
            use_auxiliary_head=False,
            num_labels=CLASSES,
        )
    )


def channels_of(network: nn.Module) -> list[int]:
    """Of the maps that `decode_head` is called with."""
    return list(network.backbone.channels if hasattr(network, "backbone") else network.config.hidden_sizes)


def logits(network: nn.Module, image: Tensor) -> Tensor:
    return interpolate(network(image).logits, image.shape[2:], mode="bilinear")


def saved_and_read_again(network: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """`network` from the files of `save_pretrained`, by `from_pretrained` of `kind`."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return kind.from_pretrained(folder).eval()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk in a network of transformers.", list(DIFFUSED), arguments)
    plain, made = build(options.network), []

    def add_walk(network: nn.Module) -> None:
        network.decode_head = DiffusedHead(network.decode_head, channels_of(network))
        made.append(network)

    found = compare(options, plain, add_walk, logits=logits, size=96)
    image = torch.randn(1, 3, 96, 96)
    for kind in (DIFFUSED[options.network], type(plain)):
        again = saved_and_read_again(made[0], kind)
        with (
            torch.no_grad()
        ):  # to rounding: weights that lie elsewhere in memory may take another kernel of a convolution
            same = torch.allclose(logits(again, image), logits(made[0], image), rtol=1e-4, atol=1e-5)
        print(f"saved, and read again by {kind.__name__}: {'the same scores' if same else 'head and walk are lost'}")
        if same != isinstance(again.decode_head, DiffusedHead):
            raise AssertionError("Scores must come back where the class wraps the head, and only there.")
    return found


if __name__ == "__main__":
    main()
