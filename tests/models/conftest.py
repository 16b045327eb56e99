"""What several tests of the models stand on."""

import pytest

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
