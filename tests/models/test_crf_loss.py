"""The CRF loss against its definition, pair by pair, and in training."""

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from models.training.crf_loss import crf_loss


def slow_loss(q, pictures, position, colour):
    """Σₖ qₖᵀ K̃ (1 − qₖ) / N as written in the docstring: every pair, fp64."""
    batch, _, height, width = q.shape
    y, x = np.mgrid[:height, :width]
    total = 0.0
    for image in range(batch):
        place, colours = np.stack([y, x], -1).reshape(-1, 2) / position, pictures[image].reshape(3, -1).T / colour
        apart = ((place[:, None] - place[None]) ** 2).sum(-1) + ((colours[:, None] - colours[None]) ** 2).sum(-1)
        kernel = np.exp(-apart / 2)
        kernel /= np.sqrt(np.outer(kernel.sum(1), kernel.sum(1)))
        np.fill_diagonal(kernel, 0)
        total += sum(row @ kernel @ (1 - row) for row in q[image].reshape(q.shape[1], -1)) / (height * width)
    return total / batch


def case(height=8, width=12):
    chance = np.random.default_rng(0)
    scores = torch.tensor(chance.normal(0, 2, (2, 3, height, width)), dtype=torch.float32)
    return scores, torch.tensor(chance.integers(90, 140, (2, 3, height, width)), dtype=torch.float32)


@pytest.mark.smoke
@pytest.mark.parametrize("stride", [1, 4])
def test_equals_the_definition(stride):
    scores, pictures = case()
    got = crf_loss(scores, pictures, position=6.0, colour=9.0, stride=stride)
    q, small = (avg_pool2d(x.double(), stride).numpy() for x in (scores.softmax(1), pictures))
    assert got.item() == pytest.approx(slow_loss(q, small, 6.0 / stride, 9.0), rel=1e-5)


@pytest.mark.smoke
def test_its_gradient_is_that_of_differences():
    scores, pictures = case(4, 5)
    scores.requires_grad_()
    (grad,) = torch.autograd.grad(crf_loss(scores, pictures, position=3.0, colour=20.0, stride=1), scores)
    chance = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = torch.randn(scores.shape, generator=chance)
        ends = [
            slow_loss((scores.double() + step * way).softmax(1).detach().numpy(), pictures.double().numpy(), 3.0, 20.0)
            for step in (1e-4, -1e-4)
        ]
        assert (grad * way).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-6)


@pytest.mark.smoke
def test_it_is_zero_where_all_agree_and_larger_where_alike_pixels_do_not():
    pictures = torch.zeros(1, 3, 16, 16)
    pictures[..., 8:] = 200.0
    one = torch.zeros(1, 2, 16, 16)
    one[:, 0] = 30.0
    along = torch.zeros(1, 2, 16, 16)
    along[:, 0, :, 8:], along[:, 1, :, :8] = 30.0, 30.0
    across = along.mT
    losses = [crf_loss(scores, pictures, stride=1).item() for scores in (one, along, across)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] < 0.01 < 0.3 < losses[2]


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="one size"):
        crf_loss(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))


@pytest.mark.smoke
def test_training_takes_it_as_an_option(tmp_path, monkeypatch):
    """It counts with its weight, in grey levels, and the run says so."""
    from models import train
    from models.data.synthetic import generate
    from models.training import trainer
    from models.training.run_folder import RunFolder

    data = generate(tmp_path / "data", "easy", 4, {"train": 4, "val": 2}, size=48)
    seen = []

    def watched(scores, pictures, **options):
        seen.append((pictures.amax() - pictures.amin()).item())
        return crf_loss(scores, pictures, **options)

    monkeypatch.setattr(trainer, "crf_loss", watched)
    losses = {}
    for weight in ("0", "0.5"):
        out = tmp_path / weight
        asked = (
            f"--data {data} --model sim_deeplab_tiny --recipe generated --epochs 1 --batch-size 4 --crop 48 --workers 0"
        )
        train.main([*asked.split(), "--out", str(out), "--crf-loss", weight, "--no-tensorboard"])
        losses[weight] = RunFolder(out).read_metrics()[-1]["loss"]
        assert RunFolder(out).read_config().crf_loss == float(weight)
    assert len(seen) == 1 and 100 < seen[0] <= 256
    assert losses["0"] < losses["0.5"] < losses["0"] + 0.5
