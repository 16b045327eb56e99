"""One's own data as it comes: names, suffixes, lists, class names, folders without lists, Cityscapes, ADE20K."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import DataError, build_dataset
from models.data.check import main as check_main
from models.data.classes import ADE20K, CITYSCAPES
from models.data.synthetic import FORMS, generate
from tests.models.voc_trees import H, W, some_mask, write_image, write_list, write_mask

NAMES = ["holiday photo 1", "Straße, naïve (2)", "$(id); %2e", "日本 0", "a"]


@pytest.mark.smoke
def test_names_with_spaces_and_umlauts(voc):
    for name in NAMES:
        write_image(voc / f"JPEGImages/{name}.jpg")
        write_mask(voc / f"SegmentationClass/{name}.png", some_mask())
    write_list(voc / "ImageSets/Segmentation/train.txt", NAMES)
    dataset = build_dataset(voc, "voc", "train")
    assert [dataset[i]["name"] for i in range(len(NAMES))] == NAMES


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
def test_letters_in_two_parts_are_one_letter(voc, on_disk, in_list):
    """macOS writes ü as u and dots, everyone else as one letter."""
    write_image(voc / f"JPEGImages/{unicodedata.normalize(on_disk, 'für')}.jpg")
    write_mask(voc / f"SegmentationClass/{unicodedata.normalize(on_disk, 'für')}.png", some_mask())
    write_list(voc / "ImageSets/Segmentation/train.txt", [unicodedata.normalize(in_list, "für")])
    assert build_dataset(voc, "voc", "train")[0]["name"] == unicodedata.normalize("NFC", "für")


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".JPEG", ".png", ".PNG"])
def test_suffixes_are_found(voc, suffix):
    path = voc / "JPEGImages/2007_000032.jpg"
    Image.open(path).save(path.with_suffix(suffix))
    path.unlink()
    assert len(build_dataset(voc, "voc", "train")) == 2


def test_a_suffix_can_be_said_and_two_files_are_not_guessed_between(voc):
    path = voc / "JPEGImages/2007_000032.jpg"
    Image.new("RGB", (W, H), (9, 9, 9)).save(path.with_suffix(".png"))
    with pytest.raises(DataError, match=r"2007_000032\.jpg and 2007_000032\.png.*--image-suffix"):
        build_dataset(voc, "voc", "train")
    for file in sorted((voc / "JPEGImages").glob("2007_000039.*")):
        Image.new("RGB", (W, H), (9, 9, 9)).save(file.with_suffix(".png"))
    for file in (voc / "SegmentationClass").iterdir():
        file.rename(file.with_name(f"{file.stem}_labels.png"))
    dataset = build_dataset(voc, "voc", "train", image_suffix=".png", mask_suffix="_labels.png")
    assert dataset.load(0)[0].max() == 9 and np.array_equal(dataset.load(1)[1], some_mask(39))


def test_lists_and_classes_from_windows(voc):
    lists = {"ImageSets/Segmentation/train.txt": ["2007_000032"], "classes.txt": [f"Klasse {c} ä" for c in range(21)]}
    for name, lines in lists.items():
        (voc / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8-sig"))
    dataset = build_dataset(voc, "voc", "train")
    assert dataset[0]["name"] == "2007_000032" and dataset.classes[0] == "Klasse 0 ä"


def test_a_second_column_is_part_of_the_name_but_in_vocs_main_lists(voc):
    write_image(voc / "JPEGImages/photo 1.jpg")
    write_mask(voc / "SegmentationClass/photo 1.png", some_mask())
    write_list(voc / "ImageSets/Segmentation/train.txt", ["photo 1"])
    assert build_dataset(voc, "voc", "train")[0]["name"] == "photo 1"


def test_reduce_zero_label(voc, capsys):
    mask = some_mask(3)
    write_mask(voc / "SegmentationClass/2007_000032.png", mask, coloured=False)
    write_list(voc / "classes.txt", [f"c{i}" for i in range(1, 21)])
    expected = np.where((mask == 0) | (mask == 255), 255, mask - 1)
    assert np.array_equal(build_dataset(voc, "voc", "train", reduce_zero_label=True).load(0)[1], expected)
    with pytest.raises(DataError, match=r"0…19"):
        build_dataset(voc, "voc", "train").load(0)
    assert check_main(["--data", str(voc), "--reduce-zero-label"]) == 0
    (voc / "classes.txt").unlink()
    assert check_main(["--data", str(voc), "--reduce-zero-label"]) == 1
    assert "without the zero label" in capsys.readouterr().err


def test_folders_without_lists(tmp_path):
    for name in ("b 1", "a", "über"):
        write_image(tmp_path / f"images/train/{name}.jpg")
        write_mask(tmp_path / f"masks/train/{name}.png", some_mask(4, 3))
    write_image(tmp_path / "images/test/x.jpg")
    (tmp_path / "images/train/.DS_Store").write_bytes(b"")
    (tmp_path / "images/train/._a.jpg").write_bytes(b"")
    write_list(tmp_path / "classes.txt", ["ground", "tree", "sky"])
    dataset = build_dataset(tmp_path, "folders", "train")
    assert [entry.name for entry in dataset.entries] == ["a", "b 1", "über"] and dataset.num_classes == 3
    assert np.array_equal(dataset[1]["mask"], some_mask(4, 3))
    assert (build_dataset(tmp_path, "folders", "test")[0]["mask"] == 255).all()
    with pytest.raises(DataError, match="holds no JPEG or PNG image; images/ has test, train"):
        build_dataset(tmp_path, "folders", "val")
    (tmp_path / "masks/train/a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: file is missing \(1 of 6"):
        build_dataset(tmp_path, "folders", "train")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: file is missing. Write the class names"):
        build_dataset(tmp_path, "folders", "test")


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(tmp_path, train_ids):
    """Ids from the data set's own label table: road 7, car 26, license plate -1 (255 in a PNG), ego vehicle 1."""
    name = "aachen_000000_000019"
    Image.new("RGB", (W, H)).save(_made(tmp_path / f"leftImg8bit/train/aachen/{name}_leftImg8bit.png"))
    ids = np.array([7, 26, 33, 1, 255, 8], np.uint8)[np.random.default_rng(0).integers(0, 6, (H, W))]
    expected = np.select([ids == 7, ids == 26, ids == 33, ids == 8], [0, 13, 18, 1], 255).astype(np.uint8)
    kind, content = ("labelTrainIds", expected) if train_ids else ("labelIds", ids)
    Image.fromarray(content).save(_made(tmp_path / f"gtFine/train/aachen/{name}_gtFine_{kind}.png"))
    dataset = build_dataset(tmp_path, "cityscapes", "train")
    assert dataset.classes == CITYSCAPES and dataset.entries[0].name == name
    assert np.array_equal(dataset.load(0)[1], expected)
    with pytest.raises(DataError, match="leftImg8bit/val: holds no"):
        build_dataset(tmp_path, "cityscapes", "val")


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    write_image(root / "images/training/ADE_train_00000001.jpg")
    mask = np.random.default_rng(0).integers(0, 151, (H, W), dtype=np.uint8)
    Image.fromarray(mask).save(_made(root / "annotations/training/ADE_train_00000001.png"))
    dataset = build_dataset(tmp_path, "ade20k", "train")
    assert dataset.classes == ADE20K and len(ADE20K) == 150
    assert np.array_equal(dataset.load(0)[1], np.where(mask == 0, 255, mask - 1))


def test_the_mixed_preset_goes_through_every_reader_and_shows_the_same_scenes(tmp_path):
    """Whatever the file is like, the pair is the one of the plain preset, up to JPEG."""
    count = len(FORMS)
    mixed = generate(tmp_path / "mixed", "mixed", 4, {"train": count}, size=(48, 64))
    plain = build_dataset(generate(tmp_path / "plain", "easy", 4, {"train": count}, size=(48, 64)), "voc", "train")
    dataset = build_dataset(mixed, "voc", "train")
    assert {form.image_suffix.lower() for form in FORMS} == {".jpg", ".jpeg", ".png"}
    assert {form.orientation for form in FORMS} == {1, 3, 6, 8} and {form.palette for form in FORMS} == {True, False}
    for i in range(count):
        (image, mask), (expected, truth) = dataset.load(i), plain.load(i)
        assert np.array_equal(mask, truth)
        assert np.abs(image.astype(int) - expected).mean() < 6
    assert any(" " in name for name in dataset.classes) and torch.is_tensor(dataset[0]["image"])


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
