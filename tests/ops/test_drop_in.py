"""The walk in other people's networks: what the options of the modules mean, and a head that is wrapped."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, layer_norm

from difnet_kernels import (
    CascadedRandomWalk,
    DiffusedHead,
    PsiProjection,
    cascaded_random_walk,
    parameter_groups,
)

GRID, K, CHANNELS, D = (4, 6), 3, (5, 7), 8


def _inputs(batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    return torch.randn(batch, K, *GRID), [
        torch.randn(batch, CHANNELS[0], 8, 12),
        torch.randn(batch, CHANNELS[1], *GRID),
    ]


def _learnt(walk: CascadedRandomWalk, gamma: float) -> CascadedRandomWalk:
    assert walk.gamma is not None
    with torch.no_grad():
        walk.gamma.fill_(gamma)
    return walk


@pytest.mark.smoke
@pytest.mark.parametrize("scale, factor", [(0.25, 0.25), ("sqrt", D**-0.5), (3, 3.0)])
def test_the_logits_are_scaled(scale: float | str, factor: float) -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D, scale=scale).eval()
    psi = [p(x, GRID) * factor**0.5 for p, x in zip(walk.psi, features, strict=True)]
    torch.testing.assert_close(walk(seed, features), cascaded_random_walk(seed, psi, walk.mu, walk.beta))


@pytest.mark.smoke
def test_cosine_embeddings_have_length_one_before_the_scale() -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D, affinity="cosine", scale=9.0).eval()
    for p in walk.embeddings(features, GRID):
        torch.testing.assert_close(p.square().sum(1), torch.full_like(p[:, 0], 9.0))
    assert torch.isfinite(walk(seed, features)).all()


@pytest.mark.smoke
def test_gaussian_rows_fall_with_the_distance() -> None:
    """P_ij ∝ exp(-scale ‖ψ_i - ψ_j‖² / 2), against the formula in fp64."""
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS[:1], D, affinity="gaussian", scale=0.3).eval()
    with torch.no_grad():
        walk.mu_raw.fill_(-20.0)
        walk.beta_raw.fill_(-20.0)  # y = P s
    nodes = walk.psi[0](features[0], GRID).flatten(2).mT.double()
    p = (-0.5 * 0.3 * torch.cdist(nodes, nodes).square()).softmax(-1)
    expected = (p @ seed.flatten(2).mT.double()).mT.unflatten(-1, GRID).float()
    torch.testing.assert_close(walk(seed, features[:1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("residual", [False, True])
def test_a_masked_node_is_not_seen_and_keeps_its_seed(residual: bool) -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D, residual=residual, affinity="gaussian").eval()
    if residual:
        _learnt(walk, 0.5)
    mask = torch.rand(2, *GRID) < 0.7
    expected = walk(seed, features, mask)
    other = torch.where(mask.unsqueeze(1), seed, seed + 3)
    got = walk(other, features, mask=mask)
    assert torch.equal(torch.where(mask.unsqueeze(1), got, 0), torch.where(mask.unsqueeze(1), expected, 0))
    torch.testing.assert_close(torch.where(mask.unsqueeze(1), 0, got), torch.where(mask.unsqueeze(1), 0, other))


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
def test_a_residual_walk_starts_at_the_identity_and_learns(steps: bool) -> None:
    """Bit for bit; γ has a gradient at once, everything else from the second step on."""
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D, residual=True, scale="sqrt")
    out = walk(seed, features, return_steps=steps)
    for y in out if steps else [out]:
        assert torch.equal(y, seed)
    optimizer = torch.optim.SGD(walk.parameters(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        (walk(seed, features) * torch.linspace(0, 1, GRID[1])).square().sum().backward()
        for name, x in walk.named_parameters():
            # a bias in front of a batch normalisation has none: the mean takes it away again
            expected = name == "gamma" or (step == 1 and not (name.startswith("psi") and name.endswith("bias")))
            if expected:
                assert x.grad is not None and bool(x.grad.any()), (step, name)
        optimizer.step()


@pytest.mark.smoke
def test_a_residual_walk_is_the_seed_and_a_share_of_the_difference() -> None:
    seed, features = _inputs()
    walk = _learnt(CascadedRandomWalk(CHANNELS, D, residual=True), 0.3).eval()
    plain = cascaded_random_walk(seed, walk.embeddings(features, GRID), walk.mu, walk.beta, return_steps=True)
    for y, full in zip(walk(seed, features, return_steps=True), plain, strict=True):
        torch.testing.assert_close(y, 0.7 * seed + 0.3 * full)


def _instance(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "norm, expected",
    [
        (None, lambda z: z),
        ("group", lambda z: nn.functional.group_norm(z, 4)),
        ("layer", lambda z: layer_norm(z.movedim(1, -1), (D,)).movedim(-1, 1)),
        (_instance, nn.functional.instance_norm),
    ],
    ids=["none", "group", "layer", "function"],
)
def test_a_projection_with_another_normalisation(
    norm: str | Callable[[int], nn.Module] | None, expected: Callable[[Tensor], Tensor]
) -> None:
    """Also for a single image of one pixel, which a batch normalisation refuses in training."""
    _, features = _inputs()
    project = PsiProjection(CHANNELS[0], D, norm=norm)
    z = nn.functional.conv2d(features[0], project.weight[:, :, None, None], project.bias)
    pooled = nn.functional.adaptive_max_pool2d(expected(z), GRID)
    torch.testing.assert_close(project(features[0], GRID), pooled, rtol=1e-5, atol=1e-5)
    if norm in ("group", "layer", None):
        assert project(features[0][:1, :, :1, :1], (1, 1)).shape == (1, D, 1, 1)


@pytest.mark.smoke
def test_each_walk_has_a_normalisation_of_its_own() -> None:
    walk = CascadedRandomWalk(CHANNELS, D, norm="group")
    assert walk.psi[0].norm is not walk.psi[1].norm


@pytest.mark.smoke
def test_features_come_as_a_tensor_a_sequence_or_a_dict() -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D).eval()
    expected = walk(seed, features)
    assert torch.equal(walk(seed, tuple(features)), expected)
    assert torch.equal(walk(seed, {"low": features[0], "high": features[1]}), expected)
    single = CascadedRandomWalk(CHANNELS[:1], D).eval()
    assert torch.equal(single(seed, features[0]), single(seed, features[:1]))
    with pytest.raises(TypeError, match=r"features must be 2 maps, one per walk, .* got one tensor \(2, 5, 8, 12\)"):
        walk(seed, features[0])


@pytest.mark.smoke
def test_channels_last_maps_and_tokens_are_the_same_features() -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D).eval()
    last = copy.deepcopy(walk)
    last.channels_last = True
    expected = walk(seed, features)
    maps = [x.movedim(1, -1) for x in features]
    torch.testing.assert_close(last(seed, maps), expected)
    tokens = features[1].flatten(2).mT  # (B, N, C)
    torch.testing.assert_close(last(seed, [maps[0], tokens]), expected)
    with pytest.raises(ValueError, match=r"one token for each of the 24 nodes .* Drop the 1 that are no pixels"):
        last(seed, [maps[0], torch.cat([tokens[:, :1], tokens], 1)])


@pytest.mark.smoke
def test_the_wrong_layout_is_named_with_its_remedy() -> None:
    seed, features = _inputs()
    walk = CascadedRandomWalk(CHANNELS, D)
    with pytest.raises(ValueError, match=r"features\[0\] must have 5 channels .* channels_last=True"):
        walk(seed, [features[0].movedim(1, -1), features[1]])
    walk.channels_last = True
    with pytest.raises(ValueError, match=r"features\[0\] must have 5 channels .* channels_last=False"):
        walk(seed, features)
    with pytest.raises(ValueError, match=r"features\[1\] must have 2 spatial axes"):
        CascadedRandomWalk(CHANNELS, D)(seed, [features[0], features[1].flatten(2)])


class Head(nn.Module):
    """A head as they are: several features in, scores out, with an option."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(CHANNELS[1], K, 1)

    def forward(self, features: list[Tensor], *, size: tuple[int, int] | None = None) -> Tensor:
        scores = self.scores(features[1])
        return scores if size is None else interpolate(scores, size, mode="bilinear")


@pytest.mark.smoke
@pytest.mark.parametrize("stride", [None, 1, 2, 4])
def test_a_wrapped_head_starts_as_the_head(stride: int | None) -> None:
    _, features = _inputs()
    head = Head()
    diffused = DiffusedHead(head, CHANNELS, embed_dim=D, stride=stride)
    size = (16, 24)
    assert torch.equal(diffused(features, size=size), head(features, size=size))


@pytest.mark.smoke
def test_the_difference_of_a_stride_is_upsampled() -> None:
    _, features = _inputs()
    diffused = DiffusedHead(Head(), CHANNELS, embed_dim=D, stride=4).eval()
    _learnt(diffused.walk, 0.7)
    scores = diffused.head(features, size=(16, 24))
    seed = avg_pool2d(scores, 4)
    moved = diffused.walk(seed, features) - seed
    expected = scores + interpolate(moved, (16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(diffused(features, size=(16, 24)), expected)
    assert (expected - scores).abs().max() > 1e-2


@pytest.mark.smoke
def test_a_head_of_another_kind_is_refused_with_what_to_wrap() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x, "aux": x}

    image = torch.randn(1, 3, 8, 8)
    with pytest.raises(TypeError, match=r"got a dict with the keys 'out', 'aux'. Wrap the part"):
        DiffusedHead(Many(), [3])(image)
    with pytest.raises(ValueError, match=r"must have 1 spatial axes, as the seed has; .* get it with unsqueeze\(1\)"):
        DiffusedHead(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(1, 2)), [3])(image)  # scores (B, H, W)
    with pytest.raises(ValueError, match=r"stride must divide the size of the scores; got stride=3 for \(8, 8\)"):
        DiffusedHead(nn.Conv2d(3, 2, 1), [3], stride=3)(image)


@pytest.mark.smoke
def test_what_is_no_list_of_channels_or_maps_is_named_with_its_remedy() -> None:
    head, (seed, features) = nn.Conv2d(CHANNELS[0], K, 1), _inputs()
    with pytest.raises(TypeError, match=r"in_channels must be a sequence .* got 5. For one walk write \[5\]"):
        DiffusedHead(head, 5)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"in_channels must be a sequence .* got \{'low': 5, 'high': 7\}. Write \[5, 7\]"
    ):
        CascadedRandomWalk({"low": 5, "high": 7})  # type: ignore[arg-type]
    walk = CascadedRandomWalk(CHANNELS, D)
    with pytest.raises(TypeError, match=r"features must be a sequence or a dict of 2 maps, .* got int"):
        walk(seed, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features must be 2 maps, one per walk; got 3"):
        walk(seed, {"low": features[0], "high": features[1], "aux": features[1]})
    with pytest.raises(ValueError, match=r"features\[1\] must have the batch of the seed, 2; got \(1, 7, 4, 6\)"):
        walk(seed, [features[0], features[1][:1]])
    with pytest.raises(TypeError, match=r"model must be a module; got list. Pass the network"):
        parameter_groups(list(walk.parameters()), 0.1)  # type: ignore[arg-type]


@pytest.mark.smoke
def test_every_parameter_has_one_group_and_its_rate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), DiffusedHead(nn.Conv2d(5, 2, 1), [5]), nn.Conv2d(2, 2, 1))
    model[2].requires_grad_(False)
    rest, gammas, gates = parameter_groups(model, 0.1, weight_decay=0.01)
    walk = model[1].walk
    assert [rest["lr"], gammas["lr"], gates["lr"]] == pytest.approx([0.1, 0.5, 2.0])
    assert [rest["weight_decay"], gammas["weight_decay"], gates["weight_decay"]] == [0.01, 0.0, 0.0]
    assert gammas["params"] == [walk.gamma] and len(gates["params"]) == 2
    every = [id(x) for group in (rest, gammas, gates) for x in group["params"]]
    assert sorted(every) == sorted(id(x) for x in model.parameters() if x.requires_grad)
    torch.optim.SGD([rest, gammas, gates], lr=1.0).step()
    assert [group["lr"] for group in parameter_groups(nn.Conv2d(3, 2, 1), 0.1)] == [0.1]


def test_an_average_of_the_weights_and_a_copy_are_the_network() -> None:
    """Forward hooks would break both; a wrapped head is a module like any other."""
    _, features = _inputs()
    diffused = DiffusedHead(Head(), CHANNELS, embed_dim=D).eval()
    _learnt(diffused.walk, 0.5)
    average = torch.optim.swa_utils.AveragedModel(
        diffused, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    average.update_parameters(diffused)
    expected = diffused(features)
    assert torch.equal(copy.deepcopy(diffused)(features), expected)
    torch.testing.assert_close(average.eval()(features), expected)
    again = DiffusedHead(Head(), CHANNELS, embed_dim=D).eval()
    again.load_state_dict(diffused.state_dict())
    assert torch.equal(again(features), expected)


@pytest.mark.parametrize("stride", [None, 2])
def test_a_wrapped_head_compiles_and_exports(stride: int | None) -> None:
    _, features = _inputs()
    diffused = DiffusedHead(Head(), CHANNELS, embed_dim=D, stride=stride).eval()
    _learnt(diffused.walk, 0.5)
    expected = diffused(features)
    torch.testing.assert_close(torch.compile(diffused, fullgraph=True)(features), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(diffused, (features,))
    torch.testing.assert_close(exported.module()(features), expected, rtol=1e-4, atol=1e-5)
