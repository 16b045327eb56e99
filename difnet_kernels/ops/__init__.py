"""The torch operators: the only folder that knows torch.library. Importing it registers everything, never later."""

from difnet_kernels.ops import cascade, projected_cascade, projection, steady_state

__all__ = ["cascade", "projected_cascade", "projection", "steady_state"]
