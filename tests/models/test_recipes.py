"""The numbers of an optimisation: the schedule, the published recipes, and which parameter gets which rate."""

import itertools

import pytest

from models import build_model
from models.training.recipes import RECIPES, build_optimizer, get_recipe, poly


def test_poly_starts_at_one_and_never_reaches_zero():
    factors = [poly(i, 100, 0.9) for i in range(100)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.01**0.9)
    assert all(a > b > 0 for a, b in itertools.pairwise(factors))


def test_recipes_hold_the_published_numbers():
    for name in ("deeplab", "authors"):
        recipe = get_recipe(name)
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.power) == (2.5e-4, 0.9, 5e-4, 0.9)
        assert (recipe.epochs, recipe.batch_size, recipe.crop) == (200, 16, 321)
    with pytest.raises(ValueError, match="deeplab, authors, scratch"):
        get_recipe("adam")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["difnet_tiny", "sim_deeplab_tiny", "walk_deeplab_tiny"])
def test_every_parameter_is_in_one_group(recipe, model):
    network = build_model(model)
    grouped = [p for group in build_optimizer(network, get_recipe(recipe)).param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, network.parameters()))


def settings_of(recipe: str) -> dict[str, tuple[float, float]]:
    """(multiple of the learning rate, weight decay) of every parameter of a small DifNet."""
    network, found = build_model("difnet_tiny"), {}
    for group in build_optimizer(network, get_recipe(recipe)).param_groups:
        for p in group["params"]:
            found[id(p)] = (group["lr_scale"], group["weight_decay"])
    return {name: found[id(p)] for name, p in network.named_parameters()}


def test_deeplab_groups():
    settings = settings_of("deeplab")
    assert settings["seed_branch.trunk.bn1.bias"] == settings["similarity_branch.conv1.weight"] == (1, 5e-4)
    assert settings["seed_branch.head.branches.0.weight"] == settings["walk.psi.0.weight"] == (10, 5e-4)
    assert settings["seed_branch.head.branches.0.bias"] == settings["importance.layers.0.bias"] == (20, 0)
    assert settings["walk.mu_raw"] == settings["walk.beta_raw"] == (10, 0)


def test_flat_groups():
    assert set(settings_of("authors").values()) == {(10, 5e-4)}
    assert set(settings_of("scratch").values()) == {(1, 1e-4)}
    generated = settings_of("generated")
    gates = {name for name in generated if name.endswith("_raw")}
    assert gates == {"walk.mu_raw", "walk.beta_raw"}
    assert {name for name, setting in generated.items() if setting == (20, 0)} == gates
    assert {setting for name, setting in generated.items() if name not in gates} == {(1, 1e-4)}
