"""A walk in a network of torchvision: python -m docs.examples.torchvision_heads [--network fcn|deeplabv3|lraspp]

All of them have a `classifier` that takes features and returns scores, so that the walk is one line. The networks are small
enough for two cores; `fcn_resnet50(num_classes=21)` takes the same line with 2048 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

from difnet_kernels import DiffusedHead
from docs.examples.common import CLASSES, compare, options_of

# the channels of the features that each classifier is called with
CHANNELS = {"fcn": [128], "deeplabv3": [128], "lraspp": [40, 960]}


def build(name: str) -> nn.Module:
    if name == "lraspp":
        return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    backbone = create_feature_extractor(resnet18(weights=None), {"layer2": "out"})
    if name == "fcn":
        return FCN(backbone, FCNHead(128, CLASSES))
    return DeepLabV3(backbone, DeepLabHead(128, CLASSES, atrous_rates=(1, 2, 4)))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk in a network of torchvision.", list(CHANNELS), arguments)

    def add_walk(network: nn.Module) -> None:
        network.classifier = DiffusedHead(network.classifier, CHANNELS[options.network])

    return compare(options, build(options.network), add_walk, logits=lambda network, image: network(image)["out"])


if __name__ == "__main__":
    main()
