"""`--backends cuda-host`: the tests of every backend, with the CUDA kernels on the twin. It is named, never chosen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from difnet_kernels.backends import Backend, cuda
from difnet_kernels.problem import Problem, Projection
from tests.cuda import projection_twin, twin
from tests.support.projections import Shape

NAME = "cuda-host"
WIDEST, CLASSES = 128, 63
# a test runs on the twin if all its problems are small: these, and of the parametrised ones what `fits`
LARGEST = 257
PIXELS = 4096  # of a batch of Ψ
FILES = {
    "test_backward.py": ("test_all_gradients", "test_medium_precision", "test_gradients_", "test_a_single_gradient",
                         "test_only_one_step", "test_one_walk_differentiates", "test_nearly_one_hot"),
    "test_forward.py": ("test_the_cascade_is_right", "test_medium_precision_keeps_its_own_bound", "test_dtypes_mix",
                        "test_walks_of_different_width_and_dtype", "test_any_number_of_spatial_axes"),
    "test_properties.py": ("test_01", "test_02", "test_03", "test_04", "test_05", "test_06", "test_07", "test_08", "test_09",
                           "test_10", "test_11", "test_15"),
    "test_layouts.py": ("test_",),
    "test_extremes.py": ("test_equal_nodes", "test_logits_far_below", "test_a_row_maximum", "test_scores_of_any_unit",
                         "test_weights_around"),
    "test_nonfinite.py": ("test_a_bad_number", "test_in_every_dtype"),
    "test_sizes.py": ("test_nothing", "test_narrow_and_wide", "test_twenty_walks", "test_one_node"),
    "test_random_shapes.py": ("test_a_random_problem",),
    # not those that hold lse to the bound of y: truncated logits (test_forward.py of this folder) reach lse undivided
    "test_bias.py": ("test_lse_without", "test_a_cascade_with", "test_a_row_without", "test_a_bad_bias"),
    # not those of threads, which the twin does not have
    "test_projection_kernels.py": ("test_edges", "test_dtypes", "test_strides", "test_outputs", "test_the_first", "test_nan",
                                   "test_the_last", "test_infinity", "test_a_large_mean", "test_an_image", "test_what"),
    "test_projection.py": ("test_it_is", "test_the_sizes", "test_random", "test_other", "test_strides", "test_the_result",
                           "test_the_first", "test_nan", "test_a_second", "test_nothing", "test_compiled", "test_it_can",
                           "test_autocast", "test_an_empty"),
    # as torch sees it: opcheck, compilation, export, autocast, checkpointing
    "test_operators.py": ("test_cascade_forward", "test_cascade_backward"),
    "test_compile.py": ("test_compiled_equals", "test_one_graph", "test_the_default", "test_autocast", "test_activation"),
    "test_bias_and_mask.py": ("test_the_operator", "test_compiled_equals", "test_an_exported", "test_a_second_derivative"),
}  # fmt: skip
# of the costly ones the twin runs a part: which cuts and loads there are does not depend on the other parameter
SAMPLED: dict[str, Callable[[dict[str, Any]], bool]] = {
    # fp32 of all, for it has all products and halves; of 16 bits one size, and every regime
    "test_all_gradients_are_right": lambda of: (
        of["dtype"] == "fp32" or (of["case"].nodes in (65, 127) and of["dtype"] != "fp64")
    ),
    "test_strided_equals_contiguous_bit_for_bit": lambda of: (
        of["dtype"] == "bf16" or of["pattern"] in ("channels_last", "unaligned", "overlapping")
    ),
    "test_random_shapes": lambda of: of["number"] % 6 == 0,
    "test_dtypes": lambda of: of["dtype"] == "bf16",
    "test_the_first_of_equal_pixels_wins": lambda of: of["slope"] == "mixed" and of["case"].values <= 1000,
    "test_strides_change_no_bit": lambda of: (
        (of["dtype"], of["layout"]) in (("fp32", "channels_last"), ("bf16", "rows_overlap"), ("fp16", "cut_out"))
        if "dtype" in of
        else of["layout"] in ("channels_last", "sliced")
    ),
    # what torch is told of an operator depends on nothing that the kernels do
    "test_cascade_forward": lambda of: of["layout"] == "channels_last" and of["with_state"] == of["steps"],
    "test_cascade_backward": lambda of: of["layout"] == "odd" and of["with_state"] != of["steps"],
    "test_the_operator": lambda of: of["lse"],
    "test_a_bad_number_spreads_in_its_image_only": lambda of: of["regime"] == "one_hot" or of["value"] == "nan",
}


def unusable() -> str | None:
    return None if shutil.which("g++") else "the twin needs g++"


def refuses(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return "the twin runs on the CPU"
    if torch.float64 in problem.dtypes:
        return "float64 has no fast matrix units"
    if max(problem.embeds) > WIDEST or problem.classes > CLASSES:
        return "too wide for the compiled kernels"
    return None


def refuses_projection(problem: Projection) -> str | None:
    if problem.device.type != "cpu":
        return "the twin runs on the CPU"
    return cuda.projection_too_much(problem)


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Sequence[Tensor],
    walked: Tensor,
    row_lse: Tensor,
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
) -> None:
    keeps = walked.shape[0] == len(psi)
    twin.cascade_forward(
        state, seed, psi, mu, beta, precision, states=states, bias=bias, lse=lse,
        walked=walked if keeps else None, row_lse=row_lse if keeps else None,
    )  # fmt: skip


def cascade_backward(
    grad_states: Sequence[Tensor],
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    **grads: Any,
) -> None:
    twin.cascade_backward(grad_states, state, seed, psi, mu, beta, walked, row_lse, precision, **grads)


def projection_forward(*given: Any, **results: Any) -> None:
    projection_twin.projection_forward(*given, **results)


def projection_backward(*given: Any, **results: Any) -> None:
    projection_twin.projection_backward(*given, **results)


def projected_cascade(*given: Any, states: Sequence[Tensor]) -> None:
    twin.projected_cascade(*given, states=states)


BACKEND = Backend(
    name=NAME,
    unusable=unusable,
    refuses=refuses,
    refuses_projection=refuses_projection,
    cascade_forward=cascade_forward,
    cascade_backward=cascade_backward,
    projection_forward=projection_forward,
    projection_backward=projection_backward,
    projected_cascade=projected_cascade,
    refuses_projected_cascade=cuda.refuses_projected_cascade,
)


def takes_test(backend: str, item: pytest.Item) -> bool:
    """Whether a backend runs a test: the twin one of FILES, of a size that it does in moments."""
    if backend != NAME:
        return True
    names = FILES.get(item.path.name, ())
    if not any(item.name.startswith(name) for name in names):
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if not SAMPLED.get(getattr(item, "originalname", ""), lambda of: True)(parameters):
        return False
    case = parameters.get("shape", parameters.get("case"))
    if isinstance(case, Shape):
        return case.embed <= WIDEST and case.values <= PIXELS
    sizes = [parameters.get("nodes", 1), parameters.get("embed", 1), parameters.get("classes", 1)]
    if case is not None:
        sizes = [case.nodes, case.embed, case.classes]
    return sizes[0] <= LARGEST and sizes[1] <= WIDEST and sizes[2] <= CLASSES
