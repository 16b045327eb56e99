"""The recipes of docs/examples run: they begin with the scores of the plain network, train, and draw their figure."""

import importlib
import importlib.util
import math

import pytest

# recipe -> the package that it is for, and its networks
RECIPES = {
    "torchvision_heads": ("torchvision", ("fcn", "deeplabv3", "lraspp")),
    "smp_decoders": ("segmentation_models_pytorch", ("unet", "deeplabv3plus")),
    "timm_encoders": ("timm", ("resnet", "swin")),
}


@pytest.mark.parametrize(
    ("recipe", "network"), [(recipe, network) for recipe, (_, networks) in RECIPES.items() for network in networks]
)
def test_a_recipe_runs(recipe, network, tmp_path, capsys):
    """Equality at step 0 is asserted by the recipe itself; what three updates are worth is not."""
    package = RECIPES[recipe][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install .[examples]")
    main = importlib.import_module(f"docs.examples.{recipe}").main
    found = main(["--network", network, "--updates", "3", "--out", str(tmp_path)])
    assert set(found) == {"without", "with"} and all(0 <= iou <= 1 and math.isfinite(iou) for iou in found.values())
    assert (tmp_path / f"{network}.png").stat().st_size > 5000
    told = capsys.readouterr().out
    assert f"{network}, 3 more with the walk: mIoU" in told and "difference: " in told
