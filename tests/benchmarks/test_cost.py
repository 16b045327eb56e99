"""The cost model says what docs/math.md derives, and its floors are those of the machine's data sheet."""

from __future__ import annotations

import pytest

from benchmarks import cost
from benchmarks.cases import CASES

HOPPER, CPU = cost.hopper("132 multiprocessors", 132), cost.Machine("any", 1e11)
VOC = CASES["eval505"].but(walks=1)
BOTH = "forward+backward"


def test_a_pair_on_a_card_is_bound_by_its_exponentials():
    """176 FLOP and one exponential forward; 432 FLOP backward in one symmetric pass, which the products bound."""
    assert cost.pair_seconds(VOC, "forward", HOPPER) == pytest.approx(0.259e-12, rel=0.01)
    assert cost.pair_seconds(VOC, BOTH, HOPPER) == pytest.approx((0.259 + 0.437) * 1e-12, rel=0.01)


@pytest.mark.parametrize(
    ("name", "forward", "both"),
    [
        ("eval505", 4.3, 4.3 + 7.3),
        ("train321", 11.7, 11.7 + 19.7),
        ("eval505_h5", 26.9, 26.9 + 45),
        ("batch4_16k", 278, 278 + 469),
    ],
)
def test_floors_of_one_walk_in_microseconds(name: str, forward: float, both: float):
    case = CASES[name].but(walks=1)
    assert cost.floor_seconds(case, "forward", HOPPER) * 1e6 == pytest.approx(forward, rel=0.01)
    assert cost.floor_seconds(case, BOTH, HOPPER) * 1e6 == pytest.approx(both, rel=0.01)


def test_wide_embeddings_are_bound_by_products():
    case = CASES["context60"].but(nodes=101 * 101, walks=1)
    assert cost.floor_seconds(case, "forward", HOPPER) * 1e6 == pytest.approx(40.4, rel=0.01)


def test_a_pair_on_a_cpu_shares_its_logit_and_pads_nothing():
    """D + 2K = 106 FLOP and half an exponential at 16 FLOP; backward 3D + 4K = 276 and one."""
    assert cost.pair_seconds(VOC, "forward", CPU) == pytest.approx((106 + 8) / 1e11)
    assert cost.pair_seconds(VOC, BOTH, CPU) == pytest.approx((106 + 8 + 276 + 16) / 1e11)
    # so only a kernel that shares can exceed the rate of the dense products
    assert cost.dense_flop(VOC, "forward") / cost.floor_seconds(VOC, "forward", CPU) > CPU.flop_per_s


def test_dense_work_and_memory():
    assert cost.dense_flop(VOC, "forward") == 2 * 4096**2 * 85
    assert cost.dense_flop(VOC, BOTH) == 3 * cost.dense_flop(VOC, "forward")
    assert cost.dense_flop(CASES["train321"], "forward") == 5 * 16 * 2 * 1681**2 * 85
    assert cost.dense_bytes(VOC, "forward", 4) == 2 * 4 * 4096**2
    assert cost.dense_bytes(CASES["eval505"], BOTH, 4) == 7 * 4 * 4096**2
