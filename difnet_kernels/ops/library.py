"""The namespace torch.ops.difnet_kernels, shared by the operators that Python defines."""

from __future__ import annotations

import torch

# the memory format of the results follows the strides of the inputs, so the compiler must not change those
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def fresh_library(name: str) -> torch.library.Library:
    """The part of the namespace that the module `name` fills; what an earlier import of it had registered goes."""
    namespace, held = torch.ops.difnet_kernels, f"_library_of_{name}"
    earlier = vars(namespace).get(held)
    if earlier is not None:
        earlier._destroy()
    library = torch.library.Library("difnet_kernels", "FRAGMENT")
    setattr(namespace, held, library)
    return library
