"""Ψ and the cascade in one launch: right class by class, the same bits whoever computes what. The truth is the two
operators of the reference in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels.backends import BACKENDS
from tests.cuda import host_backend, twin
from tests.cuda.projected import CASES, NAME, Sizes, assert_right, inputs_of, named, truth, walk_of  # noqa: F401  (named is a fixture)
from tests.cuda.twin import CARD, Machine
from tests.support.cases import DTYPES, normal
from tests.support.truth import assert_same


class Launches:
    """Runs a module on machines of one's own, and counts the launches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = CARD
        self.reports: list[twin.Report] = []
        original = twin.projected_cascade

        def run(*arguments: Any, **results: Any) -> None:
            self.reports.append(original(*arguments, **results, machine=self.machine))

        monkeypatch.setitem(BACKENDS, NAME, replace(host_backend.BACKEND, projected_cascade=run))

    @torch.no_grad()
    def __call__(self, walk: Any, seed: Tensor, features: list[Tensor], **machine: Any) -> tuple[Tensor, ...]:
        self.machine = Machine(**machine)
        before = len(self.reports)
        steps = walk(seed, features, return_steps=True)
        assert len(self.reports) == before + 1 and self.reports[-1].launches == 1
        return steps


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


# ---- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_one_launch_is_right(launches: Launches, sizes: Sizes) -> None:
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    assert_right(launches(walk, seed, features), *truth(walk, seed, features), {torch.float32})
    assert launches.reports[-1].bank_conflicts == 0


@pytest.mark.parametrize("of_parameters", ["fp32", "same"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit_features(launches: Launches, dtype: str, of_parameters: str) -> None:
    """Beside fp32 parameters ψ is fp32; in a network of 16 bits it has the dtype of the network."""
    walk, (seed, features) = walk_of(scale=0.01), inputs_of(dtype=dtype)  # logits of about 4
    if of_parameters == "same":
        walk = walk.to(DTYPES[dtype])
    steps = launches(walk, seed, features)
    assert all(y.dtype == DTYPES[dtype] for y in steps)
    dtypes = {DTYPES[dtype]} | ({torch.float32} if of_parameters == "fp32" else set())
    assert_right(steps, *truth(walk, seed, features), dtypes)


@pytest.mark.parametrize(
    "change", ["no norm", "not affine", "slope zero", "huge features", "tiny features", "one huge"]
)
def test_other_psi(launches: Launches, change: str) -> None:
    walk, (seed, features) = walk_of(norm=None if change == "no norm" else "batch"), inputs_of()
    if change == "no norm":
        walk.scale = 0.05
    for project, x in zip(walk.psi, features, strict=True):
        norm = project.norm
        if change == "not affine":
            project.norm = nn.BatchNorm2d(16, affine=False).eval()
        elif change == "slope zero":
            norm.weight.data[::2] = 0.0
        elif change == "one huge":  # a pixel does not cost the others their digits
            x[0, 0].flatten()[3] = 1e4
            norm.running_var.fill_(1e4)
            norm.running_var[:] *= 100
        elif change.endswith("features"):  # what fp16 cannot hold without a unit
            size = 1e9 if change == "huge features" else 1e-9
            x.mul_(size)
            norm.running_var.mul_(size**2)
            norm.running_mean.mul_(size)
            norm.eps = 0.0
            project.bias.data.mul_(size)
    assert_right(launches(walk, seed, features), *truth(walk, seed, features), {torch.float32})


def test_a_number_that_is_none_spreads_in_its_image_only() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    features[0][1, 0, 3, 3] = torch.nan
    with torch.no_grad():
        y = walk(seed, features)
    assert bool(y[0].isfinite().all()) and bool(y[1].isnan().all())


def test_a_mask_and_a_residual(launches: Launches) -> None:
    """Whatever masked nodes hold; an image without any returns its seed."""
    walk, (seed, features) = walk_of(residual=True), inputs_of()
    mask = normal(3, 2, 7, 9) > -0.3
    mask[1] = False
    true, logit = truth(walk, seed, features, mask)
    poisoned, last = torch.where(mask.unsqueeze(1), seed, torch.nan), features[2].clone()
    last.masked_fill_(~mask.unsqueeze(1), torch.nan)  # its windows are pixels
    with torch.no_grad():
        steps = walk(poisoned, [*features[:2], last], mask, return_steps=True)
    assert len(launches.reports) == 1
    inside = [torch.where(mask.unsqueeze(1), y, 0) for y in steps]
    assert_right(tuple(inside), [torch.where(mask.unsqueeze(1), y, 0) for y in true], logit, {torch.float32})


# ---- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 2])
def test_bits_do_not_depend_on_who_runs_when(launches: Launches, parts: int) -> None:
    sizes: Sizes = (1, 5, (8, 17), 16, ((3, (20, 40)), (17, (8, 17))))
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    first = launches(walk, seed, features, parts=parts)
    for machine in ({"workers": 1}, {"workers": 3}, {"workers": 40}, *({"schedule": n} for n in range(2, 6))):
        assert_same(launches(walk, seed, features, parts=parts, **machine), first)
    assert_same(launches(walk, seed, features, parts=parts, all_parts=True), first)


def test_an_image_alone_equals_itself_in_a_batch(launches: Launches) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    together = launches(walk, seed, features)
    for b in range(2):
        part = slice(b, b + 1)
        assert_same(launches(walk, seed[part], [x[part] for x in features]), [y[part] for y in together])


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_strides_change_no_bit(launches: Launches, layout: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.mT.contiguous().mT,
        "sliced": lambda x: x.new_zeros(3, x.shape[1] + 1, x.shape[2], 2 * x.shape[3])[1:, 1:, :, ::2].copy_(x),
    }
    laid = [ways[layout](x) for x in features]
    assert_same(launches(walk, ways[layout](seed), laid), launches(walk, seed, features))
