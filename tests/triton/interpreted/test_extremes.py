"""Where the numbers leave the ordinary: huge and one-hot logits, tiny and huge scores, wide spreads, values that are
not finite."""

from __future__ import annotations

import pytest
import torch

from tests.support.tolerances import NEARLY_ONE_HOT, assert_within
from tests.triton.interpreted.bounds import assert_as_plain_fp32, assert_right
from tests.triton.interpreted.cascade import outlier, problem, rare_classes, run, tiny, truth


@pytest.mark.parametrize("size", (1e3, 1e5, 1e9, 1e15))
def test_huge_logits_stay_finite_and_rows_sum_to_one(size: float) -> None:
    """Embeddings far beyond fp16's range are scaled by a power of two; a constant seed then stays what it is."""
    p = problem(1, 3, 67, (16,), size=size, offset=size / 3)
    p.seed.fill_(3.0)
    answer = run(p)
    assert (answer.states - 3.0).abs().max() <= 3e-5
    assert all(x.isfinite().all() for x in answer.tensors().values())


@pytest.mark.parametrize("embed", (1, 3, 16))
@pytest.mark.parametrize("size", (1e4, 1e9))
def test_huge_logits_of_one_product_stay_finite(size: float, embed: int) -> None:
    """A row's own logit differs from ‖ψ‖² by up to 2⁻¹⁰ of it, in few channels by hundreds of powers of two."""
    p = problem(1, 3, 67, (embed,), size=size, offset=size / 3, precision="medium")
    p.seed.fill_(3.0)
    answer = run(p)
    assert (answer.states - 3.0).abs().max() <= 3e-5
    assert all(x.isfinite().all() for x in answer.tensors().values())


@pytest.mark.parametrize("size", (1e4, 1e6))
def test_far_apart_nodes_keep_their_scores(size: float) -> None:
    p = problem(1, 3, 67, (16,), size=size)
    assert_within("states", run(p).states, truth(p).states, 2e-6)


@pytest.mark.parametrize("confidence", (0.9, 0.99, 0.999, 0.99999))
def test_gradients_of_a_nearly_one_hot_walk(confidence: float) -> None:
    """N orthogonal nodes of norm² L: P_ii = 1 / (1 + (N-1) e^-L), and the gradient of psi is of the size of 1 -
    P_ii."""
    N = 64
    p = problem(1, 5, N, (N,))
    level = torch.tensor(confidence / (1 - confidence) * (N - 1)).log()
    p.psi = [(level**0.5 * torch.linalg.qr(p.psi[0][0].double())[0]).float()[None]]
    ours, true = run(p), truth(p)
    assert_within("grad_psi", ours.grad_psi[0], true.grad_psi[0], 2e-5 + NEARLY_ONE_HOT / (1 - confidence))
    # better than the rounding of h·y - δ would allow, because the node itself is summed from the others
    assert_within("grad_psi", ours.grad_psi[0], true.grad_psi[0], 4e-5)


@pytest.mark.parametrize("length", (3.0, 14.0, 30.0), ids=["one_exp", "both_branches", "two_exps"])
def test_levels_of_any_spread(length: float) -> None:
    """Norms that grow along the nodes spread the row sums: tiles with a small spread take one exponential, the
    others two."""
    p = problem(1, 5, 97, (8,), size=0.3, offset=0.0)
    direction = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
    p.psi = [p.psi[0] + direction[None, :, None] * torch.linspace(0, length, 97)]
    answer = assert_right(p)
    level = answer.saved[1][0]
    spread = (level.max() - level.min()).item()
    assert (spread < 80) == (length == 3.0)


@pytest.mark.parametrize("scale", (1e-30, 1e-6, 1e6, 1e30))
def test_scores_of_any_unit(scale: float) -> None:
    p = problem(1, 5, 33, (16,))
    p.seed *= scale
    assert_right(p)


@pytest.mark.parametrize("scale", (1e-20, 1e20))
def test_gradients_of_any_unit(scale: float) -> None:
    p = problem(1, 5, 33, (16,))
    p.grad *= scale
    assert_right(p)


def test_classes_of_different_units_keep_their_precision() -> None:
    p = problem(1, 3, 33, (16,))
    units = torch.tensor([1e-8, 1.0, 1e8]).reshape(1, 3, 1)
    p.seed *= units
    p.grad /= units
    assert_right(p)


@pytest.mark.parametrize("level", (1e-8, 1e-10, 1e-30))
def test_classes_that_are_rare_in_the_image(level: float) -> None:
    """Their gradients have the size of the others', but a score so many times smaller."""
    assert_right(rare_classes(problem(1, 6, 40, (16,)), level))


@pytest.mark.parametrize("classes", (6, 130), ids=["one_chunk", "chunks"])
def test_rare_classes_of_every_step_and_from_a_state(classes: int) -> None:
    """130 classes are two chunks, and the rare ones are in the second."""
    assert_right(rare_classes(problem(1, classes, 40, (20, 8), steps=2, state=True), 1e-10))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=["fp16", "bf16"])
def test_rare_classes_of_16_bits(dtype: torch.dtype) -> None:
    """As small as the type holds normal numbers (fp16: 6e-5)."""
    p = rare_classes(problem(1, 6, 40, (16,), size=2.0), 1e-2 if dtype == torch.float16 else 1e-10)
    p.seed, p.grad, p.psi = p.seed.to(dtype), p.grad.to(dtype), [x.to(dtype) for x in p.psi]
    assert_right(p)


@pytest.mark.parametrize("level", (1e-8, 1e-20))
def test_a_gradient_that_is_small_in_some_classes(level: float) -> None:
    p = problem(1, 6, 40, (16, 8), steps=2)
    p.grad[:, :, -3:] *= level
    assert_right(p)


@pytest.mark.parametrize("size", (1e-4, 1e-5, 1e-12, 1e-25))
def test_tiny_embeddings_have_gradients(size: float) -> None:
    """P is uniform but for size²; the gradient of psi is of the size of psi itself."""
    assert_as_plain_fp32(tiny(size))


@pytest.mark.parametrize("norm", (1e4, 1e5))
def test_one_outlier_leaves_the_other_nodes_their_precision(norm: float) -> None:
    assert_as_plain_fp32(outlier(norm))


def test_a_class_of_zeros_and_a_gradient_of_zeros() -> None:
    p = problem(2, 3, 33, (16,))
    p.seed[:, 1] = 0
    p.grad[:, 1] = 0
    answer = assert_right(p)
    assert (answer.states[:, :, 1] == 0).all()
    assert (answer.grad_seed[1] == 0).all() and (answer.grad_psi[0][1] == 0).all()


@pytest.mark.parametrize("mu, beta", [(0.0, 0.7), (0.6, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_gates_at_their_ends(mu: float, beta: float) -> None:
    p = problem(1, 5, 33, (16, 16))
    p.mu.fill_(mu)
    p.beta.fill_(beta)
    assert_right(p)


def test_all_logits_far_below_zero() -> None:
    """A padded column has logit 0: here it would win every row."""
    p = problem(1, 5, 33, (2,), size=1.0, offset=0.0)
    p.psi = [torch.stack((torch.full((1, 33), 400.0), torch.linspace(-1, 1, 33)[None]), dim=1)]
    assert_right(p)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("where", ("psi", "seed"))
def test_what_is_not_finite_stays_in_its_image(where: str, value: float) -> None:
    p = problem(2, 3, 35, (16,))
    clean = run(p)
    (p.psi[0] if where == "psi" else p.seed)[0, 1, 7] = value
    answer = run(p)
    assert not answer.states[:, 0].isfinite().all()
    assert torch.equal(answer.states[:, 1], clean.states[:, 1])
    assert torch.equal(answer.grad_seed[1], clean.grad_seed[1])
    assert torch.equal(answer.grad_psi[0][1], clean.grad_psi[0][1])
