"""The walk as network parts: features in, diffused scores out. Only here live parameters."""

from difnet_kernels.modules.head import DiffusedHead
from difnet_kernels.modules.importance import ImportanceMap
from difnet_kernels.modules.projection import PsiProjection
from difnet_kernels.modules.rates import parameter_groups
from difnet_kernels.modules.walk import CascadedRandomWalk

__all__ = ["CascadedRandomWalk", "DiffusedHead", "ImportanceMap", "PsiProjection", "parameter_groups"]
