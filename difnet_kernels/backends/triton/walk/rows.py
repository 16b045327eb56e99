"""The launch rows of the two walk kernels, each for a ψ that stays in registers and for one that is too wide.

Sizes of a case: DP and KP, the padded widths; products, 1 or 3 (hi and lo) for logits and values, the larger of the two;
nodes.
"""

from __future__ import annotations

from ..rows import ADA, AMPERE, BLACKWELL, CONSUMER, HOPPER, Case, Launch, Row, first

SMALL = (AMPERE, ADA)

ROWS: tuple[Row, ...] = (
    Row("forward", Launch(64, 64, 4, 2), (HOPPER,), dict(DP=16, KP=32), dict(nodes=33)),
    Row("forward", Launch(128, 64, 4, 3), (HOPPER,), dict(DP=64, KP=32, products=1), dict(nodes=65)),
    Row("forward", Launch(128, 64, 4, 2), (HOPPER,), dict(DP=64, KP=32), dict(nodes=65)),
    Row("forward", Launch(64, 32, 4, 2, in_registers=False), (HOPPER,), {}, dict(nodes=33)),
    Row("backward", Launch(64, 64, 4, 2), (HOPPER,), dict(DP=64, KP=32), dict(nodes=33)),
    Row(
        "backward", Launch(64, 32, 4, 2, in_registers=False), (HOPPER,), dict(DP=128, KP=64, products=1), dict(nodes=33)
    ),
    Row("backward", Launch(64, 16, 4, 2, in_registers=False), (HOPPER,), dict(DP=128, KP=64), dict(nodes=33)),
    Row(
        "backward",
        Launch(64, 32, 8, 2, in_registers=False),
        (HOPPER,),
        dict(DP=128, KP=128, products=1),
        dict(nodes=33),
    ),
    Row(
        "backward", Launch(64, 32, 8, 2, in_registers=False), (HOPPER,), dict(DP=256, KP=64, products=1), dict(nodes=33)
    ),
    Row("backward", Launch(64, 32, 8, 2, in_registers=False), (HOPPER,), dict(DP=64, KP=128), dict(nodes=33)),
    Row("forward", Launch(128, 64, 8, 2), (BLACKWELL,), dict(DP=64, KP=32), dict(nodes=65)),
    Row("backward", Launch(64, 64, 4, 2), (BLACKWELL,), dict(DP=64, KP=32), dict(nodes=33)),
    Row("forward", Launch(64, 64, 4, 2), SMALL, dict(DP=64, KP=32), dict(nodes=33)),
    Row("backward", Launch(64, 16, 4, 2), (*SMALL, CONSUMER), dict(DP=64, KP=32), dict(nodes=33)),
    Row("forward", Launch(64, 32, 4, 2), (CONSUMER,), dict(DP=64, KP=32), dict(nodes=33)),
    Row(
        "forward",
        Launch(32, 32, 4, 2, in_registers=False),
        (*SMALL, BLACKWELL, CONSUMER),
        dict(DP=256, KP=64),
        dict(nodes=33),
    ),
    Row("backward", Launch(32, 16, 4, 2, in_registers=False), (*SMALL, CONSUMER), dict(DP=128, KP=64), dict(nodes=33)),
    # with 64 rows, for a warp group, Hopper would keep values on the stack, or take twice the instructions
    *(
        Row(
            "backward",
            Launch(32, 64, 8, 2, in_registers=False),
            (AMPERE, HOPPER, BLACKWELL),
            dict(DP=DP, KP=KP),
            dict(nodes=33),
        )
        for DP, KP in ((256, 64), (128, 128))
    ),
    Row("wide_forward", Launch(64, 64, 8, 2, in_registers=False), (AMPERE, HOPPER, BLACKWELL), {}, dict(nodes=33)),
    Row(
        "wide_backward",
        Launch(64, 32, 8, 2, in_registers=False),
        (AMPERE, HOPPER, BLACKWELL),
        dict(products=1),
        dict(nodes=33),
    ),
    Row("wide_backward", Launch(32, 64, 8, 2, in_registers=False), (AMPERE, HOPPER, BLACKWELL), {}, dict(nodes=33)),
    Row("wide_forward", Launch(32, 32, 8, 1, in_registers=False)),
    Row("wide_backward", Launch(32, 32, 8, 1, in_registers=False)),
    Row("forward", Launch(32, 16, 8, 1, in_registers=False)),
    Row("backward", Launch(32, 16, 8, 1, in_registers=False)),
)


def select(case: Case) -> Launch:
    return first(ROWS, case)
