"""The confusion matrix against counting by hand and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from models.evaluation.boundary import BoundaryCounts, band
from models.evaluation.metrics import ConfusionMatrix


def case(classes, seed, missing=()):
    rng = np.random.default_rng(seed)
    allowed = [c for c in range(classes) if c not in missing]
    mask = rng.choice([*allowed, 255], (3, 11, 13)).astype(np.int64)
    pred = np.where(
        rng.random(mask.shape) < 0.4, np.where(mask == 255, allowed[0], mask), rng.choice(allowed, mask.shape)
    )
    return torch.as_tensor(pred), torch.as_tensor(mask)


def brute_force_iou(pred, mask, classes):
    pixels = [(p, m) for p, m in zip(pred.flatten().tolist(), mask.flatten().tolist(), strict=True) if m != 255]
    ious = []
    for c in range(classes):
        union = sum(p == c or m == c for p, m in pixels)
        ious.append(sum(p == c and m == c for p, m in pixels) / union if union else math.nan)
    return ious, sum(p == m for p, m in pixels) / len(pixels)


@pytest.mark.smoke
@pytest.mark.parametrize("classes", [1, 2, 3, 21, 60])
@pytest.mark.parametrize("seed", range(3))
def test_equals_counting_by_hand(classes, seed):
    pred, mask = case(classes, seed)
    matrix = ConfusionMatrix(classes)
    matrix.update(pred, mask)
    ious, accuracy = brute_force_iou(pred, mask, classes)
    np.testing.assert_allclose(matrix.per_class_iou(), ious, rtol=1e-15)
    assert matrix.mean_iou() == pytest.approx(np.nanmean(ious), rel=1e-15)
    assert matrix.pixel_accuracy() == pytest.approx(accuracy, rel=1e-15)
    assert matrix.counts.dtype == torch.int64 and matrix.counts.sum() == (mask != 255).sum()
    for i in range(classes):
        for j in range(classes):
            assert matrix.counts[i, j] == ((mask == i) & (pred == j)).sum()


@pytest.mark.parametrize("classes", [3, 21])
@pytest.mark.parametrize("missing", [(), (2,), (0, 1)])
def test_equals_torchmetrics(classes, missing):
    pred, mask = case(classes, 7, missing)
    matrix = ConfusionMatrix(classes)
    matrix.update(pred, mask)
    oracle = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)
    assert matrix.mean_iou() == pytest.approx(float(oracle(pred, mask)), rel=1e-6)  # torchmetrics works in fp32
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)
    assert matrix.pixel_accuracy() == pytest.approx(float(accuracy(pred, mask)), rel=1e-6)


def test_a_class_that_never_occurs_is_left_out_and_a_false_one_is_not():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    assert matrix.mean_iou() == 1.0 and matrix.per_class_iou()[2].isnan()
    matrix.update(torch.tensor([2]), torch.tensor([0]))
    assert matrix.mean_iou() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert matrix.mean_iou(exclude=(0,)) == 0.5


def test_batches_and_merging_add_up():
    pred, mask = case(21, 1)
    whole, parts = ConfusionMatrix(21), ConfusionMatrix(21)
    whole.update(pred, mask)
    for p, m in zip(pred, mask, strict=True):
        part = ConfusionMatrix(21)
        part.update(p, m)
        parts.merge(part)
    assert torch.equal(whole.counts, parts.counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types_and_arrays(dtype):
    pred, mask = case(21, 2)
    matrix, typed = ConfusionMatrix(21), ConfusionMatrix(21)
    matrix.update(pred.numpy(), mask.numpy())
    typed.update(pred.to(dtype), mask.to(dtype))
    assert torch.equal(matrix.counts, typed.counts)


def test_counts_beyond_fp32_stay_exact():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**53
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert matrix.counts[0, 0] == 2**53 + 1


def test_nothing_counted_is_nan_not_zero():
    matrix = ConfusionMatrix(4)
    matrix.update(torch.zeros(5, dtype=torch.long), torch.full((5,), 255))
    assert math.isnan(matrix.mean_iou()) and math.isnan(matrix.pixel_accuracy())


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("pred", "mask", "words"),
    [
        (torch.tensor([0, 3]), torch.tensor([0, 0]), "pred must lie in 0…2"),
        (torch.tensor([0, -1]), torch.tensor([0, 0]), "pred"),
        (torch.tensor([0, 0]), torch.tensor([0, 254]), "mask must lie in 0…2"),
        (torch.tensor([0, 0]), torch.tensor([0, -1]), "mask"),
        (torch.tensor([0, 0]), torch.tensor([[0, 0]]), "one shape"),
        (torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), "argmax"),
        (torch.tensor([True, False]), torch.tensor([0, 1]), "class indices"),
    ],
)
def test_bad_input_is_refused_and_not_counted(pred, mask, words):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=words):
        matrix.update(pred, mask)
    assert matrix.counts.sum() == 0
    with pytest.raises(ValueError, match="merge"):
        matrix.merge(ConfusionMatrix(4))


@pytest.mark.parametrize("seed", range(3))
def test_mean_accuracy_and_weighted_iou_by_hand_and_by_torchmetrics(seed):
    pred, mask = case(5, seed, missing=(3,))
    matrix = ConfusionMatrix(5)
    matrix.update(pred, mask)
    keep = mask != 255
    per_class = MulticlassAccuracy(5, average="none", ignore_index=255)(pred, mask)
    occurring = [c for c in range(5) if (mask == c).any()]
    assert matrix.mean_accuracy() == pytest.approx(per_class[occurring].double().mean().item(), rel=1e-6)
    ious, _ = brute_force_iou(pred, mask, 5)
    shares = [(mask[keep] == c).double().mean().item() for c in range(5)]
    expected = sum(share * iou for share, iou in zip(shares, ious, strict=True) if share)
    assert matrix.frequency_weighted_iou() == pytest.approx(expected, rel=1e-12)


def test_metrics_without_pixels_are_nan():
    empty = ConfusionMatrix(3)
    assert all(math.isnan(value) for value in (empty.mean_accuracy(), empty.frequency_weighted_iou()))


def eroded(region, width):
    """The definition: 3 × 3 erosions, one after another, with nothing outside the image."""
    for _ in range(width):
        padded = np.pad(region, 1)
        height, length = region.shape
        shifts = [padded[dy : dy + height, dx : dx + length] for dy in range(3) for dx in range(3)]
        region = np.logical_and.reduce(shifts)
    return region


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_band_is_what_erosion_takes_away(width):
    from scipy.ndimage import gaussian_filter

    region = gaussian_filter(np.random.default_rng(width).normal(size=(40, 55)), 3) > 0
    assert np.array_equal(band(region, width), region & ~eroded(region, width))


def test_boundary_iou_by_hand_and_over_batches():
    """One square of ten, shifted by one: bands of width one, counted by hand. Void counts on neither side."""
    truth = torch.zeros(24, 24, dtype=torch.int64)
    truth[5:15, 5:15] = 1
    pred = truth.roll(1, 1)
    counts = BoundaryCounts(2, ratio=0.01)
    counts.update(truth, truth)
    assert counts.mean_iou() == 1
    counts = BoundaryCounts(2, ratio=0.01)
    counts.update(pred, truth)
    ring = 36  # pixels of the outline of a square of ten
    both = 2 * 9  # what two outlines, one column apart, share: nine pixels of the upper side and of the lower
    assert (int(counts.both[1]), int(counts.either[1])) == (both, 2 * ring - both)
    before = counts.both.clone()
    counts.update(torch.zeros(24, 24, dtype=torch.int64), torch.full((24, 24), 255))
    assert torch.equal(counts.both, before)
