"""A walk on features of timm: python -m docs.examples.timm_encoders [--network resnet|swin]

timm has encoders and no heads, so that this is how a network of one's own gets a walk: its head reads a list of maps, and the
walk reads the same list, one walk for each map. Swin's maps are (B, H, W, C): that is `channels_last=True`.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
from torch import Tensor, nn
from torch.nn.functional import interpolate

from difnet_kernels import DiffusedHead
from docs.examples.common import CLASSES, compare, options_of


class Head(nn.Module):
    """Every map scored by a 1×1 convolution, the scores summed on the grid of the first."""

    def __init__(self, channels: Sequence[int], channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.scores = nn.ModuleList(nn.Conv2d(c, CLASSES, 1) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = [x.movedim(-1, 1) if self.channels_last else x for x in features]
        first, *others = (score(x) for score, x in zip(self.scores, maps, strict=True))
        return sum((interpolate(x, first.shape[2:], mode="bilinear") for x in others), first)


class Segmenter(nn.Module):
    """An encoder of timm, a head, and scores at the size of the image."""

    def __init__(self, encoder: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = encoder.feature_info.channels()
        self.head: nn.Module = Head(self.channels, channels_last)

    def forward(self, image: Tensor) -> Tensor:
        return interpolate(self.head(self.encoder(image)), image.shape[2:], mode="bilinear")


def build(name: str) -> Segmenter:
    if name == "resnet":
        encoder = timm.create_model("resnet18", features_only=True, out_indices=(2, 3))
        return Segmenter(encoder, channels_last=False)
    small = {"embed_dim": 32, "depths": (1, 1, 1), "num_heads": (2, 4, 8), "window_size": 6, "img_size": 96}
    encoder = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, out_indices=(1, 2), **small)
    return Segmenter(encoder, channels_last=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk on features of timm.", ["resnet", "swin"], arguments)

    def add_walk(network: nn.Module) -> None:
        network.head = DiffusedHead(network.head, network.channels, channels_last=options.network == "swin")

    return compare(options, build(options.network), add_walk, size=96)


if __name__ == "__main__":
    main()
