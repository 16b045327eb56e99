"""The C++ model that cuts the columns is the Python one, decision by decision."""

from __future__ import annotations

import random

from difnet_kernels.backends.triton import split
from tests.cuda.twin import split_columns


def test_both_cut_alike_on_ten_thousand_problems() -> None:
    dice = random.Random(1)
    cuts = set()
    for _ in range(10_000):
        batch = dice.choice((1, 1, 2, 3, 4, 8, 16, 64, 65536))
        row_tiles, columns = dice.randint(1, 400), dice.randint(1, 800)
        processors = dice.choice((0, 1, 20, 46, 84, 108, 114, 132, 142, 148, 170))
        in_registers = dice.random() < 0.5
        expected = split.split_columns(batch, row_tiles, columns, processors, in_registers=in_registers)
        ours = split_columns(batch, row_tiles, columns, processors, in_registers)
        assert ours == (expected.parts, expected.part_tiles, expected.all_parts)
        cuts.add((ours[0], ours[2]))
    assert len({parts for parts, _ in cuts}) >= 10 and {together for _, together in cuts} == {False, True}
