"""The forward kernels on the twin: right class by class, and the same bits whoever computes what, and when.

Below about 960 nodes split_plan gives one part, so the cuts are forced here. `pytest --backends cuda-host tests/kernels` runs
the tests that every backend passes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels.backends import reference
from tests.cuda import twin
from tests.cuda.twin import CARD, Machine
from tests.support.cases import DTYPES, Case, Inputs, make
from tests.support.dense import dense
from tests.support.tolerances import HALF_ULP
from tests.support.truth import assert_same, setting

pytestmark = pytest.mark.usefixtures("poisoned")
# one row tile and several, ragged and not; every compiled width; one walk and many
SMALL = Case(2, (65,), 16, 5, 3, "smooth")
CASES = (
    SMALL, Case(1, (257,), 64, 21, 2, "photo"), Case(2, (130,), 65, 23, 2, "shuffled"),
    Case(1, (193,), 64, 24, 2, "brightening"), Case(1, (129,), 128, 63, 1, "one_hot"), Case(3, (7,), 3, 2, 5, "photo"),
)  # fmt: skip
DICE = torch.Generator()
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
EVERY_DTYPE = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])


class Result:
    """Every output of a forward: the steps (T, B, K, N), walked (T, B, N, K), row_lse (T, B, N), and the report of the run."""

    def __init__(
        self,
        inputs: Inputs,
        machine: Machine = CARD,
        precision: str = "high",
        state: Tensor | None = None,
        steps: bool = True,
    ) -> None:
        seed, psi = inputs.seed.flatten(2), [p.flatten(2) for p in inputs.psi]
        T, (B, K, N) = len(psi), seed.shape
        self.states = torch.empty((T if steps else 1, B, K, N), dtype=seed.dtype)
        self.walked, self.row_lse = torch.empty((T, B, N, K)), torch.empty((T, B, N))
        self.report = twin.cascade_forward(
            state, seed, psi, inputs.mu, inputs.beta, precision, machine=machine,
            states=self.states.unbind(), walked=self.walked, row_lse=self.row_lse,
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        return [self.states, self.walked, self.row_lse]


def truth(inputs: Inputs, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(steps, walked, lse in natural units) in fp64."""
    s = inputs.seed.double().flatten(2).mT
    y = s if state is None else state.double().mT
    found = []
    for t, p in enumerate(inputs.psi):
        y, walked, lse = reference.walk(y, s, p.double().flatten(2).mT, inputs.mu[t].double(), inputs.beta[t].double())
        found.append((y.mT, walked, lse))
    steps, walks, lses = zip(*found, strict=True)
    return torch.stack(steps), torch.stack(walks), torch.stack(lses)


def assert_right(inputs: Inputs, ours: Result, precision: str = "high", share: float = 1.0) -> None:
    """Per image, step and class: max|e| <= bound * max|y of the class|, for the states and for walked."""
    steps, walked, _ = truth(inputs)
    bound = share * setting(inputs, precision).walk
    seed = inputs.seed.double().flatten(2).abs().amax(-1)  # (B, K), the size of the class
    for name, mine, true, axis in (("states", ours.states, steps, 3), ("walked", ours.walked, walked, 2)):
        assert bool(mine.isfinite().all()), name
        error = (mine.double() - true).abs().amax(axis)
        limit = (bound + HALF_ULP[mine.dtype]) * seed
        worst = (error / limit.clamp_min(1e-300)).max().item()
        assert worst <= 1, f"{name}: {worst:.2f} of the bound {bound:.2g}"


@EVERY_CASE
@pytest.mark.parametrize(
    ("dtype", "parts"), [("fp32", 2), ("fp32", 3), ("fp32", 5), ("bf16", 2), ("bf16", 5), ("fp16", 3)]
)
def test_every_cut_is_right(case: Case, dtype: str, parts: int) -> None:
    """Parts by blocks of their own, and all parts by one block: right, and the same bits."""
    inputs = make(case, DTYPES[dtype])
    apart = Result(inputs, Machine(parts=parts))
    assert_right(inputs, apart)
    assert apart.report.bank_conflicts == 0
    assert_same(Result(inputs, Machine(parts=parts, all_parts=True, schedule=7)).tensors(), apart.tensors())


@EVERY_CASE
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_uncut_is_right(case: Case, precision: str) -> None:
    inputs = make(case, torch.float32)
    assert_right(inputs, Result(inputs, precision=precision), precision)


@pytest.mark.parametrize("parts", [0, 3])
def test_any_number_of_workers_gives_the_same_bits(parts: int) -> None:
    inputs = make(Case(2, (193,), 16, 5, 2, "photo"))
    alone = Result(inputs, Machine(workers=1, parts=parts))
    for workers in (2, 7, 132):
        assert_same(Result(inputs, Machine(workers=workers, parts=parts)).tensors(), alone.tensors())


@pytest.mark.parametrize("parts", [0, 3])
def test_twenty_schedules_give_the_same_bits(parts: int) -> None:
    inputs = make(Case(1, (130,), 16, 5, 2, "shuffled"))
    first = Result(inputs, Machine(schedule=1, parts=parts))
    for schedule in range(2, 21):
        assert_same(Result(inputs, Machine(schedule=schedule, parts=parts)).tensors(), first.tensors())


@EVERY_DTYPE
def test_an_image_alone_equals_itself_in_a_batch(dtype: str) -> None:
    """With the cuts of the plan: a batch that fills the card gives all parts to one block, an image alone does not."""
    inputs = make(Case(4, (130,), 16, 5, 2, "smooth"), DTYPES[dtype])
    for machine in (CARD, Machine(parts=2), Machine(processors=1)):
        together = Result(inputs, machine)
        for b in range(4):
            part = slice(b, b + 1)
            alone = Result(replace(inputs, seed=inputs.seed[part], psi=[p[part] for p in inputs.psi]), machine)
            assert_same(alone.tensors(), [x[:, part] for x in together.tensors()])


@EVERY_DTYPE
def test_walks_in_one_launch_equal_as_many_launches(dtype: str) -> None:
    inputs = make(Case(2, (130,), 16, 5, 5, "smooth"), DTYPES[dtype])
    once = Result(inputs)
    assert once.report.launches == 1
    for at_a_time, launches in ((1, 5), (2, 3), (4, 2)):
        parts = Result(inputs, Machine(walks_at_a_time=at_a_time))
        assert parts.report.launches == launches
        assert_same(parts.tensors(), once.tensors())


def test_more_walks_than_a_launch_holds() -> None:
    inputs = make(Case(1, (9,), 4, 3, 70, "smooth"))
    ours = Result(inputs)
    assert ours.report.launches == 2
    assert_right(inputs, ours)


def test_one_call_equals_single_walks_bit_for_bit() -> None:
    """fp32, where a state between two calls is not rounded."""
    inputs = make(Case(2, (130,), 16, 5, 3, "smooth"))
    together = Result(inputs)
    state = inputs.seed
    for t in range(3):
        one = replace(inputs, psi=inputs.psi[t : t + 1], mu=inputs.mu[t : t + 1], beta=inputs.beta[t : t + 1])
        alone = Result(one, state=state)
        state = alone.states[0]
        assert_same([x[0] for x in alone.tensors()], [x[t] for x in together.tensors()])


def test_the_last_step_alone_has_the_same_bits() -> None:
    inputs = make(SMALL)
    assert_same([Result(inputs, steps=False).states[0]], [Result(inputs).states[-1]])


def test_a_state_of_its_own() -> None:
    inputs = make(SMALL)
    state = make(SMALL, number=1).seed.flatten(2) * 3
    ours = Result(inputs, state=state)
    steps, walked, _ = truth(inputs, state)
    bound = setting(inputs).walk
    assert (ours.states.double() - steps).abs().max() <= bound * steps.abs().max()
    assert (ours.walked.double() - walked).abs().max() <= bound * walked.abs().max()


def test_a_state_that_begins_where_the_seed_does() -> None:
    """Another view of the seed's memory: image 1 starts from the scores of image 0, which leave fp16's range in its unit."""
    inputs = make(SMALL)
    inputs.seed[0] *= 2.0**20
    state = inputs.seed.flatten(2)[:1].expand(2, -1, -1)
    ours = Result(inputs, state=state)
    steps, walked, _ = truth(inputs, state)
    bound = setting(inputs).walk
    assert (ours.states.double() - steps).abs().max() <= bound * steps.abs().max()
    assert (ours.walked.double() - walked).abs().max() <= bound * walked.abs().max()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_row_lse_is_that_of_the_logits_without_their_row_terms(dtype: str) -> None:
    """In log2 units; 16-bit psi is not centred, so it has no row terms. With a centre c they are c · psi_i: one vector for
    all rows of an image explains the difference."""
    inputs = make(Case(2, (130,), 8, 5, 2, "offset" if dtype == "fp32" else "smooth"), DTYPES[dtype])
    ours = Result(inputs)
    _, _, lse = truth(inputs)
    missing = lse - ours.row_lse.double() * 0.6931471805599453  # (T, B, N)
    for t, p in enumerate(inputs.psi):
        bound = 2e-6 * max(1.0, lse[t].abs().max().item())
        if dtype == "bf16":  # the sum of weights that were rounded to 16 bits
            assert missing[t].abs().max() <= bound + 2.0**-11
        else:
            rows = p.double().mT  # (B, N, D)
            centre = torch.linalg.lstsq(rows, missing[t].unsqueeze(-1)).solution
            assert (rows @ centre - missing[t].unsqueeze(-1)).abs().max() <= 4 * bound
            assert missing[t].abs().max() > 1


BIASES = {
    "normal": lambda psi, draw: draw,
    "gaussian": lambda psi, draw: -0.5 * psi.double().square().sum(1).float(),
    "holes": lambda psi, draw: torch.where(draw > 0.3, -torch.inf, draw),
    "huge": lambda psi, draw: 1e4 * draw,
}


@EVERY_CASE
@pytest.mark.parametrize("bias", BIASES)
def test_a_bias_of_a_column_and_lse(case: Case, bias: str) -> None:
    """(W1b), every other walk with a bias. lse has the error of the logits themselves, which the matrix units truncate."""
    inputs = make(case)
    seed, draw = (
        inputs.seed.flatten(2),
        torch.randn(len(inputs.psi), case.batch, case.nodes, generator=DICE.manual_seed(5)),
    )
    biases = [BIASES[bias](p.flatten(2), draw[t]) if t % 2 == 0 else None for t, p in enumerate(inputs.psi)]
    states = [torch.empty_like(seed) for _ in inputs.psi]
    lse = [torch.empty(case.batch, case.nodes) for _ in inputs.psi]
    twin.cascade_forward(
        None, seed, inputs.psi, inputs.mu, inputs.beta, "high", states=states, walked=None, row_lse=None, bias=biases, lse=lse
    )  # fmt: skip
    wide = [None if b is None else b.double() for b in biases]
    fields = (inputs.seed.double(), [p.double() for p in inputs.psi], inputs.mu.double(), inputs.beta.double())
    true, true_lse = dense(*fields, bias=wide)
    finite = [b[b.isfinite()].abs().max().item() for b in biases if b is not None]
    largest = max(p.double().square().sum(1).max().item() for p in inputs.psi) + max(finite)
    bound = setting(inputs).walk * max(1.0, largest / setting(inputs).largest_logit)
    size = seed.double().abs().amax((0, 2)).unsqueeze(-1)
    for t, (y, exact) in enumerate(zip(states, true, strict=True)):
        assert ((y.double() - exact.flatten(2)).abs() <= bound * size).all(), f"state {t}"
        assert (lse[t].double() - true_lse[t].flatten(1)).abs().max() <= bound + 2e-6 * largest, f"lse {t}"


def test_a_row_without_a_column() -> None:
    """Its walked state is NaN and its lse -inf; a bias of the least finite number is a number."""
    inputs = make(Case(1, (70,), 16, 5, 1, "smooth"))
    seed, states, lse = inputs.seed.flatten(2), [torch.empty(1, 5, 70)], [torch.empty(1, 70)]
    for value in (-torch.inf, torch.finfo(torch.float32).min):
        bias = [torch.full((1, 70), value)]
        twin.cascade_forward(
            None, seed, inputs.psi, inputs.mu, inputs.beta, "high", states=states, walked=None, row_lse=None, bias=bias, lse=lse
        )  # fmt: skip
        if value == -torch.inf:
            assert bool(states[0].isnan().all()) and bool((lse[0] == -torch.inf).all())
        else:
            mean = seed.double().mean(2, keepdim=True)  # every logit is the least number: a row is the mean
            mixed = inputs.mu[0] * mean + (1 - inputs.mu[0]) * seed
            expected = inputs.beta[0] * mixed + (1 - inputs.beta[0]) * seed
            assert (states[0].double() - expected).abs().max() <= 1e-5 * seed.abs().max()


def test_a_state_that_is_wider_than_seed_and_psi() -> None:
    """fp32 beside 16-bit fields: the three products, so that what the caller gave in fp32 is multiplied in fp32."""
    inputs = make(SMALL, torch.bfloat16)
    state = make(SMALL, number=1).seed.flatten(2)
    ours = [torch.empty_like(state)]
    given = (inputs.seed.flatten(2), inputs.psi, inputs.mu, inputs.beta, "high")
    twin.cascade_forward(state, *given, states=ours, walked=None, row_lse=None)
    steps, _, _ = truth(inputs, state)
    assert (ours[0].double() - steps[-1]).abs().max() <= 2e-5 * state.abs().max()


def test_without_gradients_nothing_is_kept() -> None:
    """walked and row_lse are not asked for: the same states, and nobody writes anywhere."""
    inputs = make(SMALL)
    seed, psi = inputs.seed.flatten(2), inputs.psi
    states = torch.empty((1, *seed.shape))
    twin.cascade_forward(
        None, seed, psi, inputs.mu, inputs.beta, "high", states=states.unbind(), walked=None, row_lse=None
    )
    assert_same([states[0]], [Result(inputs).states[-1]])


def test_nothing_is_written_beyond_the_outputs() -> None:
    inputs = make(SMALL)
    seed = inputs.seed.flatten(2)
    T, (B, K, N) = 3, seed.shape
    guarded = [torch.full((count + 128,), 7.0) for count in (T * B * K * N, T * B * N * K, T * B * N)]
    states, walked, row_lse = (
        x[64:-64].view(shape) for x, shape in zip(guarded, ((T, B, K, N), (T, B, N, K), (T, B, N)), strict=True)
    )
    given = (None, seed, inputs.psi, inputs.mu, inputs.beta, "high")
    twin.cascade_forward(*given, states=states.unbind(), walked=walked, row_lse=row_lse)
    for x in guarded:
        assert bool((x[:64] == 7).all()) and bool((x[-64:] == 7).all())
    assert_same([states, walked, row_lse], Result(inputs).tensors())


# ---- what is hard ---------------------------------------------------------------------------------------------------


@EVERY_DTYPE
def test_small_classes_are_as_exact_as_large_ones(dtype: str) -> None:
    """Softmax probabilities: three classes of 1e-8 beside three of the rest."""
    inputs = make(Case(2, (40,), 16, 6, 2, "smooth"))
    scores = inputs.seed.double()
    scores[:, :3] -= 18.0
    inputs = replace(inputs, seed=scores.softmax(1)).to(DTYPES[dtype])
    if dtype == "fp16":  # where 1e-8 is no number
        inputs.seed[:, :3] = (inputs.seed[:, 3:] * 2.0**-10).clamp_min(2.0**-24)
    assert_right(inputs, Result(inputs))


@pytest.mark.parametrize("norm", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("nodes", [40, 130])
def test_one_node_far_away_does_not_move_the_others(nodes: int, norm: float) -> None:
    """The centre is a median: what the far node costs the others is the rounding of their own logits, not of its."""
    inputs = make(Case(1, (nodes,), 16, 6, 1, "smooth"), torch.float64)
    psi = inputs.psi[0] * 0.5 / inputs.psi[0].square().sum(1).mean().sqrt()
    psi[0, :, 17] *= norm / psi[0, :, 17].norm()
    inputs = replace(inputs, psi=[psi]).to(torch.float32)
    ours, (steps, _, _) = Result(inputs), truth(inputs)
    error = (ours.states.double() - steps).abs().amax((0, 1, 3))
    assert (error <= 5e-6 * inputs.seed.double().abs().amax((0, 2))).all()


@pytest.mark.parametrize("size", [1e-30, 1e-5, 1e-3, 1e3, 1e15])
def test_psi_of_any_size(size: float) -> None:
    """Tiny psi: nearly the mean, and the small differences are right. Huge psi: one-hot, and no overflow."""
    inputs = make(Case(1, (130,), 16, 5, 1, "smooth"))
    inputs = replace(inputs, psi=[p * size for p in inputs.psi])
    ours, (steps, _, _) = Result(inputs), truth(inputs)
    assert (ours.states.double() - steps).abs().max() <= 3e-6 * steps.abs().max()


def test_a_diffuse_walk_over_many_nodes_does_not_drift() -> None:
    """The matrix units truncate: a chain of their sums over all columns would lose a bit of the result for every factor of
    two. Sums that start from zero in every tile keep a third of the bound."""
    inputs = make(Case(1, (2500,), 4, 3, 1, "smooth"))
    inputs = replace(inputs, psi=[0.1 * p for p in inputs.psi], mu=torch.ones(1), beta=torch.ones(1))
    inputs.seed[:] = inputs.seed.abs()
    ours = Result(inputs, Machine(processors=0))
    assert ours.report.parts == 1
    assert_right(inputs, ours, share=1 / 3)


def test_the_plan_of_a_card_cuts_a_larger_image() -> None:
    inputs = make(Case(1, (1100,), 8, 3, 1, "smooth"))
    ours = Result(inputs)
    assert ours.report.parts > 1 and not ours.report.all_parts
    assert_right(inputs, ours)


def test_what_no_launch_can_hold_is_refused() -> None:
    inputs = make(Case(1, (9,), 4, 3, 1, "smooth"))
    wide = replace(inputs, seed=inputs.seed.expand(2**27, -1, -1), psi=[inputs.psi[0].expand(2**27, -1, -1)])
    fields = (twin.BatchField * 1)(twin.BatchField.of(wide.psi[0]))
    request = twin.Request(2**27, 9, 3, 1, 1, True, *(twin.BatchField.of(wide.seed),) * 3, psi=twin.address(fields))
    report = twin.Report()
    assert not twin.library().twin_cascade_forward(
        twin.by_reference(request), twin.by_reference(twin.Options(8, 1)), twin.by_reference(report)
    )
    assert b"the units of work pass 2^31" in report.error
