"""The cost model says what docs/math.md derives, and its floors are those of the machine's data sheet."""

from __future__ import annotations

import pytest

from benchmarks import cost
from benchmarks.cases import CASES

H200 = cost.h200()
VOC = CASES["eval505"].but(walks=1)
PICO = 1e12


def widths(name: str, machine: cost.Machine = H200) -> cost.Widths:
    return cost.Widths.of(CASES[name], machine)


def test_matrix_units_pad_the_classes_and_a_spare_column_and_a_cpu_pads_nothing():
    assert widths("eval505") == cost.Widths(embed=64, columns=24, depth=32)
    assert widths("context60") == cost.Widths(embed=128, columns=64, depth=64)
    assert widths("eval505", cost.cpu("any", 1e11)) == cost.Widths(embed=64, columns=21, depth=21)


@pytest.mark.parametrize(
    ("form", "flop", "exps", "picoseconds"), [("ordered", 176, 1, 0.259), ("unordered", 112, 0.5, 0.129)]
)
def test_forward_of_a_pair_on_an_h200(form: str, flop: float, exps: float, picoseconds: float):
    pair = cost.forward_cost(widths("eval505"), form)
    assert (pair.flop, pair.exps) == (flop, exps)
    assert pair.seconds(H200) * PICO == pytest.approx(picoseconds, abs=5e-4)


@pytest.mark.parametrize(
    ("form", "flop", "exps", "picoseconds"),
    [
        ("generic", 496, 1, 0.501),
        ("two_loop", 688, 2, 0.695),
        ("symmetric", 432, 2, 0.517),
        ("symmetric_one_exp", 432, 1, 0.437),
        ("unordered", 304, 1, 0.307),
    ],
)
def test_backward_of_a_pair_on_an_h200(form: str, flop: float, exps: float, picoseconds: float):
    pair = cost.backward_cost(widths("eval505"), form)
    assert (pair.flop, pair.exps) == (flop, exps)
    assert pair.seconds(H200) * PICO == pytest.approx(picoseconds, abs=1e-3)


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
    assert cost.floor_seconds(case, "forward", H200) * 1e6 == pytest.approx(forward, rel=0.01)
    assert cost.floor_seconds(case, "forward+backward", H200) * 1e6 == pytest.approx(both, rel=0.01)


def test_wide_embeddings_are_bound_by_products_not_by_exponentials():
    case = CASES["context60"].but(nodes=101 * 101, walks=1)
    assert cost.floor_seconds(case, "forward", H200) * 1e6 == pytest.approx(40.4, rel=0.01)
    pair = cost.forward_cost(cost.Widths.of(case, H200))
    assert pair.flop / H200.flop_per_s > pair.exps / H200.exp_per_s


def test_dense_flop_count_two_per_multiply_add_and_a_backward_of_twice_the_forward():
    assert cost.dense_flop(VOC, "forward") == 2 * 4096**2 * 85
    assert cost.dense_flop(VOC, "forward+backward") == 3 * cost.dense_flop(VOC, "forward")
    five_of_sixteen = CASES["train321"]
    assert cost.dense_flop(five_of_sixteen, "forward") == 5 * 16 * 2 * 1681**2 * 85


def test_on_a_cpu_only_sharing_s_can_exceed_the_dense_peak():
    machine = cost.cpu("any", 1e11)
    floor = cost.floor_seconds(VOC, "forward", machine)
    assert cost.dense_flop(VOC, "forward") / floor > machine.flop_per_s
    # every S_ij by itself, without a single exponential, cannot
    ordered = cost.forward_cost(cost.Widths.of(VOC, machine), "ordered")
    assert cost.pairs(VOC) * ordered.flop >= cost.dense_flop(VOC, "forward")


def test_memory_traffic_is_linear_and_a_dense_path_is_not():
    twice = VOC.but(nodes=2 * VOC.nodes)
    assert cost.walk_bytes(twice, "forward", 2) == 2 * cost.walk_bytes(VOC, "forward", 2)
    assert cost.dense_bytes(twice, "forward", 4) == 4 * cost.dense_bytes(VOC, "forward", 4)
    # the figures of the design: 1.6 to 25 MB per walk
    assert 1.2e6 < cost.walk_bytes(VOC, "forward", 2) < 2e6
    assert 20e6 < cost.walk_bytes(CASES["batch4_16k"].but(walks=1), "forward", 2) < 26e6
    # five walks at 505² on the paper's grid keep gigabytes of P
    assert cost.dense_bytes(CASES["eval505_h5"], "forward+backward", 4) > 2.5e9


def test_hbm_is_never_the_limit():
    for case in CASES.values():
        for direction in ("forward", "forward+backward"):
            seconds = cost.walk_bytes(case, direction, 2) / H200.bytes_per_s
            assert seconds < cost.floor_seconds(case, direction, H200)
