"""Small data sets on disk, in the layouts that users have."""

import numpy as np
from PIL import Image
from scipy.io import savemat

from models.data import palette

H, W = 12, 17
SPLITS = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}


def write_image(path, seed=0, size=(H, W)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def some_mask(seed=0, classes=21, size=(H, W)):
    mask = np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)
    mask[0] = 255
    return mask


def write_mask(path, mask, coloured=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if coloured:
        image.putpalette(palette().tobytes())
    image.save(path)


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_sbd(root, splits):
    for split, names in splits.items():
        for name in names:
            write_image(root / f"img/{name}.jpg", int(name[-3:]))
            mask = np.where(some_mask(int(name[-3:])) == 255, 0, some_mask(int(name[-3:])))
            (root / "cls").mkdir(exist_ok=True)
            savemat(root / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask, "CategoriesPresent": [1]}})
        write_list(root / f"{split}.txt", names)
