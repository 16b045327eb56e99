"""Sim-Deeplab with a walk of its own begins as Sim-Deeplab and learns; the other contexts are what they say."""

import pytest
import torch
from torch.nn.functional import interpolate

from difnet_kernels import parameter_groups
from models import build_model
from models.checkpoints import load_into
from models.training.recipes import build_optimizer, get_recipe


def tiny(name, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, 5, **options)


@pytest.mark.smoke
def test_it_begins_as_sim_deeplab_bit_for_bit():
    walk, plain, image = tiny("walk_deeplab_tiny").eval(), tiny("sim_deeplab_tiny").eval(), torch.randn(2, 3, 65, 49)
    report = load_into(walk.seed_branch, plain.seed_branch.state_dict())
    assert not report.missing
    with torch.no_grad():
        assert torch.equal(walk(image), plain(image))
        walk.walk.gamma.fill_(0.5)
        assert not torch.equal(walk(image), plain(image))


def test_details_add_up_in_fp64():
    """Steps are s + γ (yᵗ - s) of dense walks along ψ, with the 1/√D in ψ."""
    model, image = tiny("walk_deeplab_tiny").eval(), torch.randn(2, 3, 65, 49)
    model.walk.gamma.data.fill_(0.7)
    with torch.no_grad():
        details, logits = model(image, return_details=True), model(image)
    assert torch.equal(details.logits, logits) and torch.equal(details.seed, details.scores)
    assert torch.equal(logits, interpolate(details.steps[-1], (65, 49), mode="bilinear", align_corners=False))
    assert all(torch.equal(a, b) for a, b in zip(details.psi, model.similarity(image), strict=True))
    unit = [project(level, (9, 7)) for project, level in zip(
        model.walk.psi, (image, *model.seed_branch.trunk(image)), strict=True)]  # fmt: skip
    seed = details.scores.double().flatten(2).mT
    state = seed
    for psi, mu, beta, step in zip(unit, model.walk.mu, model.walk.beta, details.steps, strict=True):
        nodes = psi.detach().double().flatten(2).mT
        walked = torch.softmax(nodes @ nodes.mT / 32**0.5, -1) @ state
        state = (beta * (mu * walked + (1 - mu) * seed) + (1 - beta) * state).detach()
        expected = (seed + 0.7 * (state - seed)).mT.reshape(step.shape)
        torch.testing.assert_close(step.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_all_of_it_learns_from_the_second_step_on():
    model = tiny("walk_deeplab_tiny").train()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), 0.1)
    image, mask = torch.randn(2, 3, 65, 65), torch.randint(0, 5, (2, 65, 65))
    silent = []
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(image), mask).backward()
        silent.append({key for key, p in model.named_parameters() if not p.grad.abs().max() > 1e-9})
        optimizer.step()
    first = {key for key, _ in model.named_parameters() if key.startswith("walk.")} - {"walk.gamma"}
    assert silent[0] == first
    assert silent[1] <= {f"walk.psi.{t}.bias" for t in range(5)}  # which batch norm takes away again


def test_a_recipe_gives_the_walk_the_rates_that_the_library_advises():
    model = tiny("walk_deeplab_tiny")

    def settings(groups, scale=1.0):
        return {id(p): (round(g["lr"] / scale, 9), g["weight_decay"]) for g in groups for p in g["params"]}

    recipe = get_recipe("generated")
    ours = settings(build_optimizer(model, recipe).param_groups, recipe.lr)
    assert ours == settings(parameter_groups(model, 1.0, weight_decay=recipe.weight_decay))
    deeplab = settings(build_optimizer(model, get_recipe("deeplab")).param_groups, get_recipe("deeplab").lr)
    assert deeplab[id(model.walk.gamma)] == (50, 0)


def test_image_pooling_adds_one_vector_to_all_scores():
    pooled, image = tiny("sim_deeplab_tiny", context="image_pooling").eval(), torch.randn(2, 3, 65, 65)
    features = pooled.seed_branch.trunk(image)[-1]
    with torch.no_grad():
        added = pooled.seed_branch(image) - pooled.seed_branch.head.head(features)
        mean = pooled.seed_branch.head.branch(features.mean((2, 3), keepdim=True))
    torch.testing.assert_close(added, mean.expand_as(added), rtol=0, atol=1e-5)
    assert added.abs().max() > 1e-3
    assert pooled.seed_branch.head.branch[1].out_channels == 64  # 256 at width 64


def test_a_non_local_block_begins_as_the_identity_and_then_sees_everything():
    """Afterwards a change in one corner reaches the scores of the far one, dense in fp64."""
    torch.manual_seed(0)
    block = tiny("sim_deeplab_tiny", context="non_local").seed_branch.head.double().eval()
    features = torch.randn(1, 128, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(block(features), block.head(features))
        block.out[1].weight.fill_(1.0)
        flat = features.flatten(2)[0]  # [C, N]
        theta, phi, g = (c.weight.flatten(1) @ flat + c.bias[:, None] for c in (block.theta, block.phi, block.g))
        rows = torch.stack([torch.softmax(theta[:, i] @ phi, -1) for i in range(63)])
        seen = block.out((g @ rows.T).view(1, 64, 9, 7))
        torch.testing.assert_close(block(features), block.head(features + seen))
        moved = features.clone()
        moved[..., 0, 0] += 5
        assert (block(moved) - block(features))[..., 8, 6].abs().max() > 1e-6


@pytest.mark.parametrize("context", ["image_pooling", "non_local"])
def test_contexts_belong_to_sim_deeplab(context):
    assert tiny("sim_deeplab_tiny", context=context)(torch.randn(2, 3, 33, 49)).shape == (2, 5, 33, 49)
    with pytest.raises(ValueError, match=r"no option context.*embed_dim"):
        build_model("walk_deeplab_tiny", context=context)
    with pytest.raises(ValueError, match="context must be None or one of image_pooling, non_local; got 'psp'"):
        build_model("sim_deeplab_tiny", context="psp")
