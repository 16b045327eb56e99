"""Without a card there is nothing to collect in the file that needs one."""

from __future__ import annotations

from difnet_kernels.backends import cuda

collect_ignore = [] if cuda.unusable() is None else ["test_on_a_card.py"]
