"""What several tests of the models stand on."""

import os

import pytest
import torch

from tests.models.voc_trees import SPLITS, some_mask, write_image, write_list, write_mask


@pytest.fixture
def voc(tmp_path):
    """A VOC tree of three images below VOCdevkit, as the archive unpacks."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / f"JPEGImages/{name}.jpg", int(name[-3:]))
            write_mask(root / f"SegmentationClass/{name}.png", some_mask(int(name[-3:])))
        write_list(root / f"ImageSets/Segmentation/{split}.txt", names)
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs that are compared bit by bit have the same number of threads, in this process and in those that it starts.

    torch's bits depend on that number: on two threads a mean, a 1x1 convolution and the gradient of a convolution's weight
    sum in another order than on one (`torch.ones(4, 8, 48, 48).div(3).mean()` under set_num_threads(1) and (2)). Those of
    the walk and of Ψ do not, whoever is interrupted where (tests/kernels/test_determinism.py).
    """
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before)
    if variable is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = variable
