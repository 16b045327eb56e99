"""Short trainings in memory: the images of the generator, every image once a round, scores by hand, strokes as weak labels."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from difnet_kernels import parameter_groups
from models import build_model
from models.data import IGNORE, build_dataset, build_transform
from models.data.scenes import render
from models.data.scribbles import SMALLEST, scribbles
from models.data.synthetic import generate
from models.training.short import Images, _batches, fit, generated, score


def test_images_are_those_that_the_loaders_read(tmp_path):
    root = generate(tmp_path / "set", "long", 5, {"test": 3}, size=48, seed=7)
    dataset = build_dataset(root, "voc", "test", build_transform("default"))
    images = generated("long", 5, 3, 48, seed=7, split="test")
    for i in range(3):
        assert torch.equal(images.image[i], dataset[i]["image"]) and torch.equal(images.mask[i], dataset[i]["mask"])


def test_every_image_once_a_round_in_an_order_of_the_seed():
    def first(seed, count=7):
        return torch.cat([chosen for chosen, _ in zip(_batches(10, 4, seed), range(count), strict=False)])

    order = first(1)
    assert sorted(order[:10].tolist()) == sorted(order[10:20].tolist()) == list(range(10))
    assert not torch.equal(order[:10], order[10:20]) and not torch.equal(order, first(2))
    assert torch.equal(order, first(1))


def test_fit_learns_repeats_and_lets_the_rates_fall():
    images = generated("easy", 3, 8, 48)

    def trained():
        torch.manual_seed(0)
        model = build_model("walk_deeplab_tiny", 3, width=4).train()
        groups = parameter_groups(model, 0.1, weight_decay=1e-4)
        optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
        losses = fit(model, images, optimizer, 12, seed=3, batch=4)
        return losses, model, optimizer

    losses, model, optimizer = trained()
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert model.walk.gamma.item() != 0
    last = (1 / 12) ** 0.9
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * last, 0.5 * last, 2 * last])
    assert trained()[0] == losses


def test_a_loss_that_is_no_number_ends_the_training():
    images = Images(torch.randn(8, 3, 48, 48), torch.zeros(8, 48, 48, dtype=torch.long), 2)
    weight = torch.nn.Parameter(torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match=r"at update 1\. Lower the learning rate"):
        fit(lambda x: x[:, :2] * weight, images, torch.optim.SGD([weight], 0.1), 2, seed=0)


def test_scores_by_hand():
    """Half of class 1 is taken for class 0; void counts for nothing."""
    mask = torch.zeros(1, 48, 48, dtype=torch.long)
    mask[:, :, 24:] = 1
    mask[:, 0] = IGNORE
    found = torch.zeros(1, 48, 48, dtype=torch.long)
    found[:, :, 36:] = 1
    logits = torch.nn.functional.one_hot(found, 3).movedim(-1, 1).float()
    got = score(lambda image: logits, Images(torch.zeros(1, 3, 48, 48), mask, 3))
    assert got.per_class_iou == pytest.approx([24 / 36, 12 / 24, 0.0])
    assert got.mean_iou == pytest.approx((24 / 36 + 12 / 24) / 3)
    assert 0 < got.boundary_iou < 1


def test_scribbles_are_one_stroke_in_every_region():
    shares = []
    for index in range(8):
        mask = render("long", 5, (97, 97), 0, index).mask
        drawn = scribbles(mask, index)
        labelled = drawn != IGNORE
        assert np.array_equal(drawn[labelled], mask[labelled])
        assert np.array_equal(drawn, scribbles(mask, index)) and not np.array_equal(drawn, scribbles(mask, index + 1))
        for c in np.unique(mask[mask != IGNORE]):
            regions, count = scipy.ndimage.label(mask == c)
            for i in range(1, count + 1):
                region = regions == i
                assert labelled[region].any() == (region.sum() >= SMALLEST)
        shares.append(labelled.mean())
    assert 0.005 < np.mean(shares) < 0.06
