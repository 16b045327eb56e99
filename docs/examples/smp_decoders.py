"""A walk in a network of segmentation_models.pytorch: python -m docs.examples.smp_decoders [--network unet|deeplabv3plus]

Their `segmentation_head` scores every pixel, too many nodes for a walk on a CPU. `stride=8` diffuses the means of 8×8 pixels
and adds what that changed. The sides of an image must then be multiples of 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
from torch import nn

from difnet_kernels import DiffusedHead
from docs.examples.common import CLASSES, compare, options_of

# the channels of the decoder's output, which the head is called with
CHANNELS = {"unet": [16], "deeplabv3plus": [64]}


def build(name: str) -> nn.Module:
    common = {"encoder_weights": None, "classes": CLASSES}
    if name == "unet":
        return smp.Unet("resnet18", encoder_depth=3, decoder_channels=(64, 32, 16), **common)
    return smp.DeepLabV3Plus("resnet18", encoder_depth=4, encoder_output_stride=16, decoder_channels=64, **common)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk in a network of segmentation_models.pytorch.", list(CHANNELS), arguments)

    def add_walk(network: nn.Module) -> None:
        network.segmentation_head = DiffusedHead(network.segmentation_head, CHANNELS[options.network], stride=8)

    return compare(options, build(options.network), add_walk, size=96)


if __name__ == "__main__":
    main()
