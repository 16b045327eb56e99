"""Exact diffusion of class scores over images: the random-walk cascade of DifNet without N x N matrices."""

from difnet_kernels.backends import BACKENDS, BackendUnavailable
from difnet_kernels.functional import cascaded_random_walk, psi_projection, random_walk, transition_rows
from difnet_kernels.modules import (
    CascadedRandomWalk,
    DiffusedHead,
    ImportanceMap,
    PsiProjection,
    parameter_groups,
)
from difnet_kernels.steady_state import diffuse

__version__ = "0.2.0"

__all__ = [
    "BACKENDS",
    "BackendUnavailable",
    "CascadedRandomWalk",
    "DiffusedHead",
    "ImportanceMap",
    "PsiProjection",
    "cascaded_random_walk",
    "diffuse",
    "parameter_groups",
    "psi_projection",
    "random_walk",
    "transition_rows",
]
