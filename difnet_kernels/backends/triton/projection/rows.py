"""The launch rows of Ψ's kernels. `narrow` kernels are those of C ≤ 4, which multiply without the matrix units.

A tile has all channels of ψ and `cols` pixels (forward: windows, of which one pixel each is in the tile). Sizes of a case:
DP, the padded width of ψ; statistics and channels_last, 0 or 1.
"""

from __future__ import annotations

from ..rows import ADA, BLACKWELL, CONSUMER, HOPPER, Case, Launch, Row, first

# the pixels of an image are padded to this in the backward; a power of two that every row's `cols` divides
PAD = 64
# DP, the padded width of ψ -> channels of a chunk, the same in every kernel because W is split once for all of them; a
# tile of W's hi and lo is DP times as large
CHUNKS = {16: 64, 32: 64, 64: 64, 128: 32, 256: 32}

# the parts whose matrix units take 64 rows (the channels of ψ) from shared memory; on the others a wide tile of pixels
# would not fit the registers
WARP_GROUPS = (HOPPER, BLACKWELL)
# 99 KiB of shared memory: one program in place of two
SMALL_SHARED = (ADA, CONSUMER)

ROWS: tuple[Row, ...] = (
    Row("narrow_forward", Launch(0, 16, 4, 1), None, dict(DP=64)),
    Row("narrow_forward", Launch(0, 16, 8, 1)),
    Row("forward", Launch(0, 32, 4, 3), WARP_GROUPS, dict(DP=64, statistics=0), dict(channels_last=1)),
    Row("forward", Launch(0, 16, 4, 2), (BLACKWELL,), dict(DP=64, channels_last=0)),
    Row("forward", Launch(0, 16, 4, 3), None, dict(DP=64)),
    Row("forward", Launch(0, 16, 8, 2)),
    Row("narrow_backward", Launch(0, 8, 4, 1), None, dict(DP=64)),
    Row("narrow_backward", Launch(0, 16, 8, 1)),
    Row("pixel_gradient", Launch(0, 32, 4, 3), WARP_GROUPS, dict(DP=64), dict(channels_last=1)),
    Row("pixel_gradient", Launch(0, 16, 4, 3), None, dict(DP=64)),
    Row("pixel_gradient", Launch(0, 16, 8, 2)),
    Row("feature_gradient", Launch(0, PAD, 4, 2), None, dict(DP=64)),
    Row("feature_gradient", Launch(0, 32, 8, 1), None, dict(DP=128)),
    Row("feature_gradient", Launch(0, 16, 8, 1)),
    Row("weight_gradient", Launch(0, PAD, 8, 2), SMALL_SHARED, dict(DP=64)),
    Row("weight_gradient", Launch(0, PAD, 4, 2), None, dict(DP=64)),
    Row("weight_gradient", Launch(0, PAD, 8, 1)),
)


def select(case: Case) -> Launch:
    return first(ROWS, case)
