"""The trunk of both branches: a ResNet whose last two stages trade stride for dilation (output stride 8).

Parameter names equal torchvision's (`layer2.0.downsample.1.weight`), so that its weight files load unchanged.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; only the second is dilated. (B, C, H, W) -> (B, C', ⌈H/s⌉, ⌈W/s⌉)"""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        stride_in: str = "conv1",
    ) -> None:
        del stride_in  # a basic block can only stride in its first convolution
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1×1, dilated 3×3, 1×1 (four times as wide) and a shortcut.

    stride_in: "conv1" strides in the 1×1 (the original ResNet and DeepLab), "conv2" in the 3×3 (torchvision).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        stride_in: str = "conv1",
    ) -> None:
        super().__init__()
        strides = {"conv1": (stride, 1), "conv2": (1, stride)}[stride_in]
        self.conv1 = nn.Conv2d(in_channels, channels, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, strides[1], dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNetTrunk(nn.Module):
    """Dilated ResNet: image (B, 3, H, W) -> the outputs of its four stages, shallow to deep.

    Strides 4, 8, 8, 8; the max pool rounds up, so 321 -> 41, 505 -> 64, 512 -> 65 nodes a side (`grid`).
    `out_channels` holds the four channel counts (256 … 2048 for bottlenecks at width 64).
    stages: how many of the four exist, for a reader that needs no deeper ones; with none there is no stem either.
    """

    def __init__(
        self, block: str, blocks: Sequence[int], width: int = 64, stride_in: str = "conv1", stages: int = 4
    ) -> None:
        super().__init__()
        if stride_in not in ("conv1", "conv2"):
            raise ValueError(f"stride_in must be 'conv1' or 'conv2' (torchvision); got {stride_in!r}.")
        kind = BLOCKS[block]
        self.out_channels = [width * 2**stage * kind.expansion for stage in range(4)]
        self.stages = stages
        if not stages:
            return
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

        channels = width
        made = list(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True))[:stages]
        for stage, (count, stride, dilation) in enumerate(made):
            stage_width = width * 2**stage
            layers = []
            for index in range(count):
                first = index == 0
                layers.append(
                    kind(
                        channels,
                        stage_width,
                        stride if first else 1,
                        dilation,
                        _downsample(channels, stage_width * kind.expansion, stride, dilation) if first else None,
                        stride_in,
                    )
                )
                channels = stage_width * kind.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation by fan-out for convolutions; the identity for batch norm."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.stages:
            return ()
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        levels = []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            levels.append(x)
        return tuple(levels)

    @staticmethod
    def grid(size: Sequence[int]) -> tuple[int, ...]:
        """The nodes of the deepest level, along each side of an image: (H', W')."""
        return tuple((((side + 1) // 2 // 2 + 1) + 1) // 2 for side in size)


def _downsample(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Module | None:
    # dilated stages always project, as DeepLab does; at the paper's depths their channels change anyway
    if stride == 1 and in_channels == out_channels and dilation == 1:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
