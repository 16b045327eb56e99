"""The scan before a training finds everything that is wrong, at once."""

import numpy as np

from models.data import build_dataset
from models.data.check import main as check_main
from models.data.check import overlap, scan
from tests.models.voc_trees import SPLITS, H, W, some_mask, write_list


def test_the_scan_counts_pixels_and_finds_everything_at_once(voc, capsys):
    report = scan(build_dataset(voc), "train")
    expected = np.bincount(np.stack([some_mask(32), some_mask(39)]).ravel(), minlength=256)
    assert np.array_equal(report.pixels, expected) and report.sizes == [(H, W)] * 2
    assert check_main(["--data", str(voc)]) == 0
    assert "sound" in capsys.readouterr().out
    (voc / "JPEGImages/2007_000032.jpg").write_bytes(b"")
    (voc / "SegmentationClass/2007_000033.png").write_bytes(b"")
    write_list(voc / "ImageSets/Segmentation/test.txt", ["2007_000032"])
    assert check_main(["--data", str(voc), "--split", "train", "val", "test", "missing"]) == 1
    problems = capsys.readouterr().err
    for words in ("2007_000032.jpg", "2007_000033.png", "missing.txt", "in both train and test"):
        assert words in problems


def test_overlap_concerns_held_out_splits_only(voc):
    write_list(voc / "ImageSets/Segmentation/trainval.txt", SPLITS["train"] + SPLITS["val"])
    sets = {split: build_dataset(voc, "voc", split) for split in ("train", "val", "trainval")}
    assert overlap(sets) == []
    assert len(overlap({"train": sets["trainval"], "val": sets["val"]})) == 1
