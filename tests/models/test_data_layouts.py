"""VOC, SBD and Pascal Context are read from the layouts that users have."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from models.data import CONTEXT, CONTEXT_DETAIL, VOC, DataError, build_dataset, colour, palette
from models.data.check import require_sound
from tests.models.voc_trees import SPLITS, H, W, some_mask, write_image, write_list, write_mask, write_sbd


@pytest.mark.smoke
@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_is_found_from_its_folder_or_above(voc, above):
    root = [voc, voc.parent, voc.parent.parent][above]
    dataset = build_dataset(root, "voc", "train")
    assert [entry.name for entry in dataset.entries] == SPLITS["train"]
    assert dataset.classes == VOC and dataset.num_classes == 21
    sample = dataset[1]
    assert sample["name"] == "2007_000039"
    assert sample["image"].shape == (3, H, W) and sample["image"].dtype == torch.float32
    assert sample["mask"].dtype == torch.int64 and np.array_equal(sample["mask"], some_mask(39))


def test_the_test_split_has_no_ground_truth(voc, tmp_path):
    (voc / "SegmentationClass").rename(tmp_path / "elsewhere")
    write_list(voc / "ImageSets/Segmentation/test.txt", ["2007_000032"])
    assert (build_dataset(voc, "voc", "test")[0]["mask"] == 255).all()


@pytest.mark.parametrize("coloured", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_preconverted_augmentation(voc, coloured, pairs):
    """Grey or palette masks; lists of ids, or of 'image label' pairs with a leading slash."""
    names = ["2007_000032", "2007_000033"]
    for name in names:
        write_mask(voc / f"SegmentationClassAug/{name}.png", some_mask(7), coloured)
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" if pairs else n for n in names]
    write_list(voc / "ImageSets/SegmentationAug/train.txt", lines)
    dataset = build_dataset(voc, "voc_aug", "train")
    assert [entry.name for entry in dataset.entries] == names
    assert np.array_equal(dataset[0]["mask"], some_mask(7))


@pytest.mark.parametrize("where", ["Segmentation/trainaug.txt", "Segmentation/train_aug.txt"])
def test_other_names_of_the_augmented_list(voc, where):
    write_mask(voc / "SegmentationClassAug/2007_000039.png", some_mask())
    write_list(voc / "ImageSets" / where, ["2007_000039"])
    assert len(build_dataset(voc, "voc_aug", "train")) == 1


def test_augmentation_from_mat_is_the_union_without_validation(voc, tmp_path):
    """(VOC train ∪ SBD train ∪ SBD val) − VOC val, VOC's masks preferred, SBD's without void."""
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    write_sbd(sbd, {"train": ["2007_000032", "2008_000001"], "val": ["2007_000033", "2008_000002"]})
    dataset = build_dataset(voc, "voc_aug", "train", sbd_root=tmp_path)
    assert [e.name for e in dataset.entries] == [*SPLITS["train"], "2008_000001", "2008_000002"]
    assert np.array_equal(dataset[0]["mask"], some_mask(32))  # VOC's, with its void row
    assert (dataset[2]["mask"] != 255).all() and np.array_equal(dataset[2]["mask"][1:], some_mask(1)[1:])
    assert len(build_dataset(voc, "voc_aug", "train")) == 4  # found beside VOCdevkit without being told
    validation = build_dataset(voc, "voc_aug", "val")
    assert [e.name for e in validation.entries] == SPLITS["val"]
    assert require_sound(dataset).images == 4


def test_sbd_alone(tmp_path):
    write_sbd(tmp_path / "dataset", {"train": ["2008_000001"], "val": ["2008_000002"]})
    dataset = build_dataset(tmp_path, "sbd", "val")
    assert len(dataset) == 1 and np.array_equal(dataset[0]["mask"][1:], some_mask(2)[1:])


def test_context_classes():
    assert len(CONTEXT) == len(CONTEXT_DETAIL) == 60 and set(CONTEXT) == set(CONTEXT_DETAIL)
    assert [("table" if name == "diningtable" else name) for name in VOC] == list(CONTEXT[:21])
    assert CONTEXT_DETAIL[1:4] == ("aeroplane", "bag", "bed") and CONTEXT_DETAIL[-1] == "wood"


@pytest.mark.parametrize(("kind", "classes"), [("context", CONTEXT), ("context_detail", CONTEXT_DETAIL)])
def test_context_from_png(tmp_path, kind, classes):
    root = tmp_path / "VOC2010"
    write_image(root / "JPEGImages/2008_000002.jpg")
    write_mask(root / "SegmentationClassContext/2008_000002.png", some_mask(3, 60))
    write_list(root / "ImageSets/SegmentationContext/val.txt", ["2008_000002"])
    dataset = build_dataset(tmp_path, kind, "val")
    assert dataset.classes == classes and np.array_equal(dataset[0]["mask"], some_mask(3, 60))


@pytest.mark.parametrize(("kind", "classes"), [("context", CONTEXT), ("context_detail", CONTEXT_DETAIL)])
def test_context_from_mat_reduces_459_labels(tmp_path, kind, classes):
    root = tmp_path / "VOC2010"
    names = [f"thing{i}" for i in range(400)] + [("diningtable" if n == "table" else n) for n in CONTEXT[1:]]
    np.random.default_rng(0).shuffle(names)
    write_list(root / "labels.txt", [f"{i}: {name}" for i, name in enumerate(names, start=1)])
    write_image(root / "JPEGImages/2008_000002.jpg")
    labels = np.random.default_rng(1).integers(0, 460, (H, W))
    (root / "trainval").mkdir()
    savemat(root / "trainval/2008_000002.mat", {"LabelMap": labels.astype(np.uint16)})
    write_list(root / "ImageSets/Main/val.txt", ["2008_000002 -1"])
    mask = build_dataset(root, kind, "val")[0]["mask"]
    for y in range(H):
        for x in range(W):
            name = names[labels[y, x] - 1].replace("diningtable", "table") if labels[y, x] else "none"
            assert classes[mask[y, x]] == (name if name in classes else "background")
    write_list(root / "labels.txt", ["1: aeroplane"])
    with pytest.raises(DataError, match=r"labels\.txt: lacks"):
        build_dataset(root, kind, "val")


def test_the_colour_map_is_voc_s():
    assert palette()[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette()[20].tolist() == [0, 64, 128] and palette()[255].tolist() == [224, 224, 192]
    assert len({tuple(row) for row in palette()}) == 256
    assert colour(np.array([[1, 255]], np.uint8)).tolist() == [[[128, 0, 0], [224, 224, 192]]]
