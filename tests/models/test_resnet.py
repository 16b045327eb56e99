"""The trunk: torchvision's keys and counts, the paper's strides and dilations, the node grid of nine input sizes."""

import pytest
import torch
from torch import nn

from models import build_model
from models.networks.resnet import ResNetTrunk

DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
TRUNK_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
NINE_SIZES = {
    (321, 321): (41, 41),
    (505, 505): (64, 64),
    (512, 512): (65, 65),
    (375, 500): (48, 63),
    (97, 97): (13, 13),
    (65, 65): (9, 9),
    (64, 64): (9, 9),
    (33, 1): (5, 1),
    (1, 1): (1, 1),
}


def meta_trunk(depth: int, **options) -> ResNetTrunk:
    with torch.device("meta"):
        return ResNetTrunk(*DEPTHS[depth], **options)


@pytest.mark.smoke
@pytest.mark.parametrize("depth", TRUNK_PARAMETERS)
def test_parameters_equal_the_published_count(depth):
    assert sum(p.numel() for p in meta_trunk(depth).parameters()) == TRUNK_PARAMETERS[depth]


def torchvision_keys(depth: int) -> set[str]:
    """The names in torchvision's ResNet files without `fc.*`, spelled out from their pattern."""
    kind, blocks = DEPTHS[depth]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", *(f"bn1.{name}" for name in norm)}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            for index in range(1, (2 if kind == "basic" else 3) + 1):
                keys |= {f"{at}.conv{index}.weight", *(f"{at}.bn{index}.{name}" for name in norm)}
            if block == 0 and (stage > 1 or kind == "bottleneck"):
                keys |= {f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{name}" for name in norm)}
    return keys


@pytest.mark.parametrize("depth", DEPTHS)
def test_keys_equal_torchvision(depth):
    assert set(meta_trunk(depth).state_dict()) == torchvision_keys(depth)


@pytest.mark.parametrize("size", NINE_SIZES, ids=str)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_node_grid(kind, size):
    """Strides 4, 8, 8, 8 with a max pool that rounds up."""
    trunk = ResNetTrunk(kind, (1, 1, 1, 1), width=4).eval()
    with torch.no_grad():
        levels = trunk(torch.zeros(1, 3, *size))
    assert [level.shape[1] for level in levels] == trunk.out_channels
    for level in levels[1:]:
        assert tuple(level.shape[2:]) == NINE_SIZES[size]
    assert [(n + 1) // 2 for n in levels[0].shape[2:]] == list(NINE_SIZES[size])


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_dilation_replaces_stride_in_the_last_two_stages(kind):
    trunk = ResNetTrunk(kind, (2, 2, 2, 2), width=4)
    for stage, dilation in enumerate((1, 1, 2, 4), start=1):
        for block in getattr(trunk, f"layer{stage}"):
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert block.conv1.dilation == (1, 1)


@pytest.mark.parametrize("stride_in", ["conv1", "conv2"])
def test_stride_option_moves_the_only_stride_of_the_bottlenecks(stride_in):
    trunk = ResNetTrunk("bottleneck", (2, 2, 2, 2), width=4, stride_in=stride_in)
    strided = {
        name for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d) and module.stride != (1, 1)
    }
    assert strided == {"conv1", f"layer2.0.{stride_in}", "layer2.0.downsample.0"}


def test_unknown_stride_option_is_refused():
    with pytest.raises(ValueError, match="stride_in must be"):
        build_model("difnet_tiny", stride_in="conv3")


def test_initialisation_is_he_by_fan_out():
    """Standard deviations, checked on a layer large enough for 1 % accuracy; batch norm starts as the identity."""
    torch.manual_seed(0)
    trunk = ResNetTrunk("basic", (1, 1, 1, 1), width=64)
    conv = trunk.layer4[0].conv2.weight  # 512·512·9 draws: relative error of the deviation ~ 5e-4
    assert conv.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert torch.equal(trunk.bn1.weight, torch.ones(64)) and torch.equal(trunk.bn1.bias, torch.zeros(64))


def test_the_grid_is_known_before_the_levels_are():
    """Of every side up to 80, and of the paper's sizes."""
    trunk = ResNetTrunk("basic", (1, 1, 1, 1), width=1).eval()
    with torch.no_grad():
        for side in [*range(1, 81), 321, 505, 512]:
            assert ResNetTrunk.grid((side, 9)) == tuple(trunk(torch.zeros(1, 3, side, 9))[-1].shape[2:]), side
