"""The modules against the same network composed of torch's own layers, and the contracts of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import difnet_kernels
from difnet_kernels import CascadedRandomWalk, ImportanceMap, PsiProjection, cascaded_random_walk, psi_projection

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
SIZES = {1: ((37,), (9,)), 2: ((13, 17), (5, 6)), 3: ((5, 6, 7), (2, 3, 7))}


def _projection(axes: int, training: bool) -> tuple[PsiProjection, nn.Module, Tensor, tuple[int, ...]]:
    """PsiProjection with lively parameters, conv-BN-pool that share them, features, and the grid."""
    torch.manual_seed(axes)
    ours = PsiProjection(6, 4)
    size, grid = SIZES[axes]
    conv, norm = CONVS[axes](6, 4, 1), NORMS[axes](4)
    with torch.no_grad():
        for x in (ours.norm.weight, ours.norm.bias, ours.norm.running_mean):
            x.copy_(torch.randn(4))  # weights of both signs: the maximum becomes a minimum there
        ours.norm.running_var.copy_(torch.rand(4) + 0.5)
        conv.weight.copy_(ours.weight.reshape(conv.weight.shape))
        conv.bias.copy_(ours.bias)
    norm.load_state_dict(ours.norm.state_dict())
    theirs = nn.Sequential(conv, norm, POOLS[axes](grid))
    return ours.train(training), theirs.train(training), torch.randn(2, 6, *size), grid


@pytest.mark.smoke
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_psi_projection_is_conv_norm_pool(axes: int, training: bool) -> None:
    """(Ψ1), its gradients, and in training the running statistics it leaves behind."""
    ours, theirs, features, grid = _projection(axes, training)
    mine, yours = features.clone().requires_grad_(), features.clone().requires_grad_()
    a, b = ours(mine, grid), theirs(yours)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    weights = torch.randn(a.shape)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-5)
    conv, norm, _ = theirs
    torch.testing.assert_close(ours.weight.grad, conv.weight.grad.reshape(4, 6), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.bias.grad, conv.bias.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.norm.weight.grad, norm.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.norm.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.norm.running_var, norm.running_var)


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (9, 11), (2, 3), (1, 1)], ids=str)
def test_the_grid_may_be_any_size(size: tuple[int, int]) -> None:
    """Pooling down, not at all, by uneven windows, and up where the features are smaller than the grid."""
    project, features = PsiProjection(3, 4).eval(), torch.randn(2, 3, *size)
    grid = (4, 5)
    plain = nn.functional.conv2d(features, project.weight[:, :, None, None], project.bias)
    expected = nn.functional.adaptive_max_pool2d(project.norm(plain), grid)
    assert torch.equal(project(features, grid), expected)


def test_psi_projection_without_norm_and_bias() -> None:
    features, weight = torch.randn(2, 3, 7, 9), torch.randn(5, 3)
    expected = nn.functional.adaptive_max_pool2d(torch.einsum("dc,bchw->bdhw", weight, features), (3, 4))
    torch.testing.assert_close(psi_projection(features, weight, None, None, (3, 4)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": torch.randn(2, 3)}, ("features must be (B, C, *S)", "(2, 3)")),
        ({"features": torch.randn(2, 3, 2, 2, 2, 2)}, ("one to three spatial axes",)),
        ({"features": torch.randn(2, 4, 7, 9)}, ("3 channels of weight", "got 4")),
        ({"grid": (3,)}, ("2 positive sizes", "(3,)")),
        ({"grid": (3, 0)}, ("2 positive sizes", "(3, 0)")),
    ],
    ids=["rank 2", "rank 6", "channels", "axes of grid", "empty grid"],
)
def test_psi_projection_says_what_is_wrong(change: dict[str, object], words: tuple[str, ...]) -> None:
    arguments = {"features": torch.randn(2, 3, 7, 9), "grid": (3, 4), **change}
    with pytest.raises(ValueError) as caught:
        psi_projection(arguments["features"], torch.randn(5, 3), None, None, arguments["grid"])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_importance_map_is_three_times_norm_relu_conv(training: bool) -> None:
    """M: K -> 8 -> 4 -> 1 channels with 5x5 windows and no convolution bias, one weight in [0, 1] per node."""
    torch.manual_seed(0)
    ours = ImportanceMap(21).train(training)
    shapes = [tuple(p.shape) for p in ours.parameters() if p.dim() == 4]
    assert shapes == [(8, 21, 5, 5), (4, 8, 5, 5), (1, 4, 5, 5)]
    scores = torch.randn(2, 21, 9, 11)
    weights = ours(scores)
    assert weights.shape == (2, 1, 9, 11)
    assert weights.min() >= 0 and weights.max() <= 1
    parameters = list(ours.parameters())
    ours.eval()
    x = scores
    for scale, shift, kernel in zip(parameters[::3], parameters[1::3], parameters[2::3], strict=True):
        norm = next(m for m in ours.modules() if isinstance(m, nn.BatchNorm2d) and m.weight is scale)
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        x = (x * scale[:, None, None] + shift[:, None, None]).clamp_min(0)
        x = nn.functional.conv2d(x, kernel, padding=2)
    torch.testing.assert_close(ours(scores), 1 / (1 + (-x).exp()), rtol=1e-4, atol=1e-5)


@pytest.mark.smoke
def test_the_cascade_module_is_its_parts() -> None:
    torch.manual_seed(0)
    walk = CascadedRandomWalk(in_channels=(3, 7), embed_dim=5).eval()
    seed, features = torch.randn(2, 4, 5, 6), [torch.randn(2, 3, 20, 24), torch.randn(2, 7, 5, 6)]
    psi = [project(f, (5, 6)) for project, f in zip(walk.psi, features, strict=True)]
    expected = cascaded_random_walk(seed, psi, walk.mu, walk.beta, return_steps=True)
    assert torch.equal(walk(seed, features), expected[-1])
    steps = walk(seed, features, return_steps=True)
    assert all(torch.equal(a, b) for a, b in zip(steps, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(walk.embeddings(features, (5, 6)), psi, strict=True))


@pytest.mark.parametrize("gate", [0.01, 0.5, 0.9])
def test_gates_start_where_asked(gate: float) -> None:
    walk = CascadedRandomWalk(in_channels=(3, 3, 3), embed_dim=2, gate=gate)
    for probability in (walk.mu, walk.beta):
        assert probability.shape == (3,) and probability.dtype == torch.float32
        torch.testing.assert_close(probability, torch.full((3,), gate))
    assert walk.mu_raw.data_ptr() != walk.beta_raw.data_ptr()


@pytest.mark.parametrize("gate", [0.0, 1.0, -1.0, 2.0])
def test_gates_that_could_not_learn_are_refused(gate: float) -> None:
    with pytest.raises(ValueError, match=rf"strictly between 0 and 1; got {gate}"):
        CascadedRandomWalk(gate=gate)


def test_a_half_network_keeps_its_gates_in_fp32() -> None:
    walk = CascadedRandomWalk(in_channels=(3,), embed_dim=4).bfloat16()
    assert walk.mu.dtype == walk.beta.dtype == torch.float32


def test_the_default_is_the_papers_network() -> None:
    """Input and four blocks of a ResNet-50 to 152, 64 channels each."""
    walk = CascadedRandomWalk()
    assert [p.weight.shape for p in walk.psi] == [(64, c) for c in (3, 256, 512, 1024, 2048)]
    assert {name.split(".")[0] for name, _ in walk.named_parameters()} == {"psi", "mu_raw", "beta_raw"}


def test_too_few_features_are_refused() -> None:
    walk = CascadedRandomWalk(in_channels=(3, 3), embed_dim=2)
    with pytest.raises(ValueError, match="features must be 2 maps, one per walk; got 1"):
        walk(torch.randn(1, 2, 4, 4), [torch.randn(1, 3, 4, 4)])


def test_every_parameter_learns() -> None:
    """A few steps of gradient descent lower a loss, and no parameter is left without a gradient."""
    torch.manual_seed(0)
    walk = CascadedRandomWalk(in_channels=(3, 5), embed_dim=4)
    seed, features = torch.randn(2, 3, 6, 6), [torch.randn(2, 3, 12, 12), torch.randn(2, 5, 6, 6)]
    target = torch.randn(2, 3, 6, 6) * 0.1
    optimizer = torch.optim.Adam(walk.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        loss = (walk(seed, features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # a bias in front of a batch normalisation has none: the mean takes it away again
        dead = [
            n for n, p in walk.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith("bias"))
        ]
        assert not dead
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_public_surface() -> None:
    """What the package promises, nothing missing and nothing more."""
    assert sorted(difnet_kernels.__all__) == sorted(
        [
            "BACKENDS", "BackendUnavailable", "CascadedRandomWalk", "ImportanceMap", "PsiProjection",
            "cascaded_random_walk", "psi_projection", "random_walk", "transition_rows",
        ]
    )  # fmt: skip
    for name in difnet_kernels.__all__:
        assert getattr(difnet_kernels, name) is not None
