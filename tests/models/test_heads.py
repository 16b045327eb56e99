"""ASPP is a sum of four dilated convolutions with biases; both initialisations draw what they promise."""

import pytest
import torch
import torch.nn.functional as F

from models.networks.heads import ASPP, LargeFOV


def test_aspp_is_the_sum_of_its_four_rates():
    torch.manual_seed(0)
    head, features = ASPP(16, 5).double(), torch.randn(2, 16, 30, 27, dtype=torch.float64)
    for branch in head.branches:
        torch.nn.init.normal_(branch.bias)
    expected = 0
    for rate, branch in zip((6, 12, 18, 24), head.branches, strict=True):
        padded = F.pad(features, (rate,) * 4)
        columns = [padded[:, :, dy : dy + 30, dx : dx + 27] for dy in (0, rate, 2 * rate) for dx in (0, rate, 2 * rate)]
        expected = expected + torch.einsum("kct,tbchw->bkhw", branch.weight.flatten(2), torch.stack(columns))
        expected = expected + branch.bias[None, :, None, None]
    torch.testing.assert_close(head(features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels, count", [(512, 387_156), (2048, 1_548_372)])
def test_aspp_parameters_equal_the_published_count(channels, count):
    assert sum(p.numel() for p in ASPP(channels, 21).parameters()) == count


def test_large_fov_is_one_convolution_of_rate_12():
    head = LargeFOV(8, 3)
    assert len(head.branches) == 1
    assert head.branches[0].dilation == head.branches[0].padding == (12, 12)


@pytest.mark.parametrize("init, std", [("normal", 0.01), ("authors", (2 / (9 * 21)) ** 0.5)])
def test_initialisation(init, std):
    torch.manual_seed(0)
    head = ASPP(512, 21, init=init)  # 96,768 draws a branch: relative error of the deviation ~ 0.2 %
    for branch in head.branches:
        assert branch.weight.std().item() == pytest.approx(std, rel=0.02)
        assert not branch.bias.any()


def test_unknown_initialisation_is_refused():
    with pytest.raises(ValueError, match="'normal' or 'authors'"):
        ASPP(8, 3, init="xavier")
