"""The fully connected CRF against its definition, pixel by pixel."""

import numpy as np
import pytest
import torch

from models.evaluation.crf import Bilateral, DenseCRF, alike_side_by_side


def slow_crf(probabilities, picture, iterations, w_b, t_a, t_b, w_s, t_g):
    """Mean field as written in the docstring: loops over pairs, fp64."""
    classes, height, width = probabilities.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    n = len(pixels)
    bilateral, smooth = np.zeros((n, n)), np.zeros((n, n))
    for i, (y, x) in enumerate(pixels):
        for j, (v, u) in enumerate(pixels):
            far = (y - v) ** 2 + (x - u) ** 2
            apart = ((picture[y, x].astype(float) - picture[v, u].astype(float)) ** 2).sum()
            bilateral[i, j] = np.exp(-far / (2 * t_a**2) - apart / (2 * t_b**2))
            smooth[i, j] = np.exp(-far / (2 * t_g**2))
    p = probabilities.reshape(classes, n).T
    q = p.copy()
    for _ in range(iterations):
        message = np.zeros_like(q)
        for weight, kernel in ((w_b, bilateral), (w_s, smooth)):
            norm = kernel.sum(1)
            for i in range(n):
                for j in range(n):
                    if i != j:
                        message[i] += weight * kernel[i, j] / np.sqrt(norm[i] * norm[j]) * q[j]
        q = p * np.exp(message)
        q /= q.sum(1, keepdims=True)
    return q.T.reshape(classes, height, width)


def case(height=6, width=7, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = torch.as_tensor(rng.dirichlet(np.ones(classes), (height, width))).permute(2, 0, 1)
    return probabilities, rng.integers(90, 110, (height, width, 3)).astype(np.uint8)


@pytest.mark.smoke
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_definition(dtype, tolerance):
    probabilities, picture = case()
    crf = DenseCRF(4, 4.0, 5.0, 9.0, 3.0, 1.5)
    got = crf(probabilities.to(dtype), picture)
    assert got.dtype == dtype
    expected = slow_crf(probabilities.numpy(), picture, 4, 4.0, 5.0, 9.0, 3.0, 1.5)
    np.testing.assert_allclose(got.numpy(), expected, atol=tolerance)


def test_without_weights_or_iterations_nothing_changes():
    probabilities, picture = case()
    for crf in (DenseCRF(iterations=0), DenseCRF(bilateral_weight=0, smooth_weight=0)):
        np.testing.assert_allclose(crf(probabilities, picture), probabilities, atol=1e-12)


def test_it_repairs_a_noisy_prediction_along_the_picture_s_edge():
    """Two flat halves, a unary term right in 65 % of the pixels: colours that agree settle it."""
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 40), dtype=int)
    truth[:, 23:] = 1
    picture = np.where(truth[..., None] == 1, 180, 60).astype(float) + rng.normal(0, 1, (40, 40, 3))
    noisy = np.where(rng.random((40, 40)) < 0.65, truth, 1 - truth)
    first = torch.full((2, 40, 40), 0.4).scatter_(0, torch.as_tensor(noisy)[None], 0.6)
    refined = DenseCRF()(first, picture.astype(np.uint8))
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)
    assert (first.argmax(0).numpy() == truth).mean() < 0.7
    assert (refined.argmax(0).numpy() == truth).mean() > 0.99


def test_the_order_of_the_nodes_puts_the_alike_together_and_changes_nothing():
    """Two images of two kinds of nodes, in turn: the order holds every node once, and the kinds one after the other."""
    features = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[:, 2, ::2] += 20
    order = alike_side_by_side(features)
    assert torch.equal(order.sort(-1).values, torch.arange(300).expand(2, -1))
    kind = order % 2
    assert ((kind[:, 1:] != kind[:, :-1]).sum(1) == 1).all()
    q = torch.rand(2, 3, 300, dtype=torch.float64)
    kernel = (-0.5 * torch.cdist(features.mT, features.mT).square()).exp()
    root = kernel.sum(-1).sqrt()
    kernel = (kernel - torch.eye(300)) / (root.unsqueeze(-1) * root.unsqueeze(-2))
    torch.testing.assert_close(Bilateral(features)(q), q @ kernel, rtol=1e-11, atol=1e-12)


def test_rows_that_underflow_stay_finite():
    """Every colour unlike every other, and probabilities of exactly 0 and 1."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    probabilities = torch.zeros(4, 20, 30)
    probabilities[1] = 1
    refined = DenseCRF()(probabilities, picture)
    assert refined.isfinite().all() and (refined.argmax(0) == 1).all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="one size"):
        DenseCRF()(torch.rand(3, 4, 5), np.zeros((5, 4, 3), np.uint8))
