"""The modules against the same network composed of torch's own layers, and the contracts of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import difnet_kernels
from difnet_kernels import CascadedRandomWalk, ImportanceMap, cascaded_random_walk


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
            "BACKENDS",
            "BackendUnavailable",
            "CascadedRandomWalk",
            "DiffusedHead",
            "ImportanceMap",
            "PsiProjection",
            "cascaded_random_walk",
            "diffuse",
            "onnx_decompositions",
            "parameter_groups",
            "psi_projection",
            "random_walk",
            "transition_rows",
        ]
    )
    for name in difnet_kernels.__all__:
        assert getattr(difnet_kernels, name) is not None
