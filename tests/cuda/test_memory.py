"""Bytes: the workspace of a launch, beside what the Triton backend allocates for the same cascade at its peak; and what a
walk moves for a column tile."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from difnet_kernels.backends.cuda import counters_size
from tests.cuda import twin
from tests.cuda.test_backward import Back
from tests.cuda.test_forward import Result
from tests.support.cases import Case, make

MIB = 2**20
FORWARD, BACKWARD = "forward", "backward"
PAGE = (twin.ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")


class Cascade:
    """Tensors that nobody touches: five walks of a batch."""

    def __init__(self, batch: int, nodes: int, dtype: torch.dtype) -> None:
        self.seed = torch.empty(batch, 21, nodes, dtype=dtype)
        self.psi = [torch.empty(batch, 64, nodes, dtype=dtype) for _ in range(5)]
        self.gates = torch.empty(5)
        self.out, self.grad_psi = torch.empty_like(self.seed), [torch.empty_like(p) for p in self.psi]
        self.kept = torch.empty(5, batch, nodes, 21), torch.empty(5, batch, nodes)
        self.counters = torch.empty(counters_size(batch, nodes, 5), dtype=torch.int32)

    @property
    def given(self) -> tuple[None, Tensor, list[Tensor], Tensor, Tensor]:
        return None, self.seed, self.psi, self.gates, self.gates

    @property
    def grads(self) -> dict[str, Any]:
        return dict(
            grad_state=None, grad_seed=self.out, grad_psi=self.grad_psi, grad_mu=self.gates, grad_beta=self.gates
        )

    def request(self, direction: str) -> tuple[Any, list[object]]:
        if direction == FORWARD:
            return twin.request_of(*self.given, "high", [self.out], *self.kept, self.counters, twin.CARD)
        return twin.backward_request_of([self.seed], *self.given, *self.kept, "high", self.counters, **self.grads)


class Peak(TorchDispatchMode):
    """The most bytes that are alive at a time of what torch allocates, each rounded up as its allocator does."""

    live = peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and "empty" in function.name():
            size = -(-made.untyped_storage().nbytes() // 512) * 512
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(made.untyped_storage(), self._free, size)
        return made

    def _free(self, size: int) -> None:
        self.live -= size


def of_triton(cascade: Cascade, direction: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The peak of the Triton backend on an H100, with launches that do nothing."""
    pytest.importorskip("triton")
    from difnet_kernels.backends.triton.launch import Card
    from difnet_kernels.backends.triton.walk import host, host_backward, prepare, state

    for module in (host, host_backward, prepare, state):
        monkeypatch.setattr(module, "launch", lambda *arguments, **options: None)
    for module in (host, host_backward):
        monkeypatch.setattr(module, "card_of", lambda device: Card(90, twin.H100))
    with Peak() as seen:
        if direction == FORWARD:
            walked, row_lse = cascade.kept
            host.cascade_forward(*cascade.given, "high", states=[cascade.out], walked=walked, row_lse=row_lse)
        else:
            host_backward.cascade_backward([cascade.seed], *cascade.given, *cascade.kept, "high", **cascade.grads)
    return seen.peak


@pytest.mark.parametrize(("batch", "nodes"), [(1, 4096), (4, 16384)])
def test_the_workspace_is_no_larger_than_tritons(monkeypatch: pytest.MonkeyPatch, batch: int, nodes: int) -> None:
    """Five walks, D = 64, K = 21: the row of the table in docs/cuda.md."""
    cells = []
    for dtype in (torch.float32, torch.bfloat16):
        for direction in (FORWARD, BACKWARD):
            cascade = Cascade(batch, nodes, dtype)
            request, _kept = cascade.request(direction)
            ours, theirs = twin.workspace(request)[0], of_triton(cascade, direction, monkeypatch)
            assert ours <= theirs
            cells.append(f"{ours / MIB:.1f} ({theirs / MIB:.1f})")
    assert f"| {batch}, {nodes:,} | {' | '.join(cells)} |" in PAGE


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_the_psi_of_many_walks_do_not_pile_up(direction: str) -> None:
    """Where they are large a launch has fewer walks: 32 MiB of them, or one."""
    launches = {}
    for batch, nodes in ((1, 4096), (4, 16384), (16, 16384)):
        request, _kept = Cascade(batch, nodes, torch.float32).request(direction)
        launches[batch, nodes] = twin.workspace(request)[1]
    assert launches == {(1, 4096): 1, (4, 16384): 3, (16, 16384): 5}


# ---- one walk -----------------------------------------------------------------------------------------------------------
ROWS, WARPS, CHUNK = 64, 4, 512  # of a row tile; of a block; bytes that one ldmatrix of four loads
KINDS = [(products, embed, width) for products in (1, 3) for embed in (64, 128) for width in (24, 64)]


def copied_of_a_tile(products: int, embed: int, width: int, direction: str) -> int:
    """Global to shared memory: the halves of ψ and y, and backward of both h; bias, and backward the two levels of every
    column and the numbers of its tile."""
    tile, halves = twin.tile_of(products, embed, width, direction == BACKWARD), 2 if products == 3 else 1
    if direction == FORWARD:
        return halves * tile * (embed + width) * 2 + tile * 4
    return halves * tile * (embed + 3 * width) * 2 + 3 * tile * 4 + (width + 4) * 4


def loaded_of_16_columns(products: int, embed: int, width: int, direction: str) -> int:
    """Shared memory to registers, for the 16 rows of a warp: right operands, and left ones that registers do not hold."""
    halves, steps, rest = 2 if products == 3 else 1, width // 16, width % 16 // 8
    of_psi, weighted = halves * embed // 16 * CHUNK, halves * (steps * CHUNK + rest * CHUNK // 2)
    if direction == FORWARD:
        return of_psi + weighted
    of_fields = 2 * (halves * steps + rest) * CHUNK
    again = 0
    if (products, embed, width) == (3, 128, 64):
        again = embed // 16 * CHUNK + 2 * halves * steps * CHUNK
    elif embed == 128 or (products == 3 and width == 64):
        again = of_psi
    return 2 * of_psi + of_fields + weighted + again


def copied_of_own_rows(products: int, embed: int, width: int) -> int:
    """Of a walk backwards: the left operands that stay in shared memory."""
    halves = 2 if products == 3 else 1
    if (products, embed, width) == (3, 128, 64):
        return ROWS * embed * 2 + 2 * halves * ROWS * width * 2
    return halves * ROWS * embed * 2 if embed == 128 or (products == 3 and width == 64) else 0


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("products", "embed", "width"), KINDS)
def test_a_walk_moves_what_was_computed(products: int, embed: int, width: int, direction: str) -> None:
    """One walk over two row tiles, byte by byte as the twin counts them (docs/cuda.md has the table)."""
    nodes = 2 * ROWS
    dtype = torch.float32 if products == 3 else torch.bfloat16
    inputs = make(Case(1, (nodes,), embed, 21 if width == 24 else 30, 1, "smooth"), dtype)
    run = (Result if direction == FORWARD else Back)(inputs, twin.Machine(parts=1))
    size = (products, embed, width)
    tiles = 2 * nodes // twin.tile_of(*size, direction == BACKWARD)
    own = 2 * copied_of_own_rows(*size) if direction == BACKWARD else 0
    assert run.report.copied == tiles * copied_of_a_tile(*size, direction) + own
    assert run.report.loaded == 2 * WARPS * (nodes // 16) * loaded_of_16_columns(*size, direction)


def test_the_plan_of_the_documentation() -> None:
    """Three products, D = 64, K up to 23: bytes of a column tile, and for 16 rows and 16 columns."""
    for direction, copied, loaded in ((FORWARD, 22_784, 5_632), (BACKWARD, 17_904, 12_800)):
        found = [count(3, 64, 24, direction) for count in (copied_of_a_tile, loaded_of_16_columns)]
        assert found == [copied, loaded]
        assert f"{copied:,} bytes: ψ" in PAGE and f"· {loaded:,} bytes" in PAGE
