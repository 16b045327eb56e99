"""The namespace torch.ops.difnet_kernels, shared by the operators that Python defines."""

import torch

LIBRARY = torch.library.Library("difnet_kernels", "FRAGMENT")
# the memory format of the results follows the strides of the inputs, so the compiler must not change those
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
