"""Masks mean what they say: colours of palettes, 0 and 255, classes without a pixel, EXIF, val inside train."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from models import train, visualize
from models.data import DataError, build_dataset, colour, palette
from models.data.check import main as check_main
from models.data.check import scan
from models.data.masks import main as convert_main
from tests.models.voc_trees import H, W, some_mask, write_list, write_mask


def optimised(mask):
    """What lossless PNG optimisers do: only the colours that occur, renumbered, and the pixels with them."""
    used = np.unique(mask)
    image = Image.fromarray(np.searchsorted(used, mask).astype(np.uint8))
    image.putpalette(palette()[used].tobytes())
    return image


MASK, IMAGE = "SegmentationClass/2007_000032.png", "JPEGImages/2007_000032.jpg"


@pytest.mark.smoke
def test_a_renumbered_palette_is_refused_with_both_classes(voc):
    mask = np.full((H, W), 8, np.uint8)
    mask[:3], mask[3:5], mask[5:7] = 0, 15, 255
    write_mask(voc / MASK, mask)
    assert np.array_equal(build_dataset(voc, "voc", "train").load(0)[1], mask)
    optimised(mask).save(voc / MASK)
    with pytest.raises(DataError, match=r"index 1 has the colour \(64, 0, 0\), which is that of class 8"):
        build_dataset(voc, "voc", "train").load(0)
    assert len(scan(build_dataset(voc, "voc", "train")).problems) == 1


@pytest.mark.parametrize("colours", [
    np.repeat(np.arange(256)[:, None], 3, 1),  # a grey ramp: colours are indices again
    np.random.default_rng(0).integers(1, 60, (256, 3)) * 2 + 1,  # somebody's own
    palette(),
    palette()[:21],  # cut: 255 has no colour
])  # fmt: skip
def test_other_palettes_are_read_by_index(voc, colours):
    image = Image.fromarray(some_mask(3))
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(voc / MASK)
    assert np.array_equal(build_dataset(voc, "voc", "train").load(0)[1], some_mask(3))


def two_classes(voc, value):
    """Foreground masks, as drawing programs save them."""
    write_list(voc / "classes.txt", ["background", "cat"])
    for path in (voc / "SegmentationClass").iterdir():
        mask = np.zeros((H, W), np.uint8)
        mask[3:9, 3:9] = value
        write_mask(path, mask, coloured=False)


def train_on(voc, out, *more):
    return train.main([
        "--data", str(voc), "--model", "sim_deeplab_tiny", "--options", '{"width": 4}', "--recipe", "scratch", "--crop",
        "16", "--batch-size", "2", "--epochs", "1", "--workers", "0", "--device", "cpu", "--no-tensorboard", "--out",
        str(out), *more,
    ])  # fmt: skip


def test_masks_of_0_and_255_are_told(voc, tmp_path, capsys):
    two_classes(voc, 255)
    assert check_main(["--data", str(voc)]) == 0
    told = capsys.readouterr()
    assert "WARNING train: only 0 and 255 occur in the masks" in told.err and "is 255 your class cat?" in told.err
    assert "sound, 2 warnings" in told.out
    assert train_on(voc, tmp_path / "run") == 0
    assert "WARNING train: only 0 and 255 occur" in (tmp_path / "run/log.txt").read_text()


def test_classes_without_a_pixel_are_told(voc, tmp_path, capsys):
    two_classes(voc, 1)
    write_list(voc / "classes.txt", ["background", "cat", "unicorn"])
    assert check_main(["--data", str(voc)]) == 0
    assert "1 of 3 classes have no pixel: unicorn" in capsys.readouterr().err
    assert train_on(voc, tmp_path / "run") == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("WARNING train: 1 of 3 classes have no pixel: unicorn") == 1
    two_classes(voc, 1)
    assert check_main(["--data", str(voc)]) == 0
    assert "WARNING" not in capsys.readouterr().err


def test_validation_inside_training_is_told(voc, tmp_path):
    write_list(voc / "ImageSets/Segmentation/val.txt", ["2007_000032"])
    for more in ((), ("--no-check",)):
        assert train_on(voc, tmp_path / f"run{len(more)}", *more) == 0
        assert "1 names are in both train and val" in (tmp_path / f"run{len(more)}/log.txt").read_text()


# ----------------------------------------------------------------------------------------------------------- EXIF


def tagged(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_read_as_people_see_it(voc, orientation):
    """Pillow's own turning is the truth; the mask belongs to what is seen."""
    stored = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
    path = (voc / IMAGE).with_suffix(".png")
    (voc / IMAGE).unlink()
    tagged(path, stored, orientation)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    write_mask(voc / MASK, some_mask(5, size=seen.shape[:2]))
    image, mask = build_dataset(voc, "voc", "train").load(0)
    assert np.array_equal(image, seen) and np.array_equal(mask, some_mask(5, size=seen.shape[:2]))
    assert scan(build_dataset(voc, "voc", "train")).turned == ([] if orientation == 1 else ["2007_000032"])


def test_a_mask_of_the_stored_pixels_is_refused_by_its_reason(voc):
    (voc / IMAGE).unlink()
    tagged((voc / IMAGE).with_suffix(".png"), np.zeros((H, W, 3), np.uint8), 6)
    with pytest.raises(DataError, match=r"as seen.*EXIF orientation 6 and is 12×17 upright, the mask is 17×12"):
        build_dataset(voc, "voc", "train").load(0)


def test_turned_photographs_are_a_warning(voc, capsys):
    (voc / IMAGE).unlink()
    tagged((voc / IMAGE).with_suffix(".png"), np.zeros((H, W, 3), np.uint8), 3)
    assert check_main(["--data", str(voc)]) == 0
    assert "1 photographs have an EXIF orientation and are read upright" in capsys.readouterr().err


def test_damaged_exif_says_nothing(voc):
    Image.new("RGB", (W, H)).save(voc / IMAGE, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff")
    assert build_dataset(voc, "voc", "train").load(0)[0].shape == (H, W, 3)


def test_figures_show_a_photograph_upright(tmp_path):
    path = tmp_path / "phone.png"
    tagged(path, np.arange(48 * 64 * 3, dtype=np.int64).reshape(48, 64, 3).astype(np.uint8), 6)
    assert visualize.read_image(path).shape == (64, 48, 3)


# ------------------------------------------------------------------------------------------------------ converter


def colour_masks(folder, masks):
    folder.mkdir()
    for name, pixels in masks.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")


def test_colour_masks_become_indices(tmp_path, capsys):
    colours = np.array([[10, 20, 30], [200, 0, 0], [255, 255, 255]], np.uint8)
    mask = np.random.default_rng(0).integers(0, 3, (5, 7))
    colour_masks(tmp_path / "rgb", {"über 1": colours[mask], "b": colours[1 - mask.clip(0, 1)]})
    write_list(tmp_path / "colours.txt", ["10 20 30 background", "200, 0, 0, traffic light", "255 255 255 void"])
    arguments = ["--masks", tmp_path / "rgb", "--colours", tmp_path / "colours.txt", "--out", tmp_path / "masks"]
    assert convert_main([str(argument) for argument in arguments]) == 0
    with Image.open(tmp_path / "masks/über 1.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), np.array([0, 1, 255])[mask])
    assert (tmp_path / "masks/classes.txt").read_text() == "background\ntraffic light\n"
    Image.fromarray(np.full((2, 2, 3), 9, np.uint8)).save(tmp_path / "rgb/c.png")
    assert convert_main([str(argument) for argument in arguments]) == 1
    assert "c.png: every colour must be listed; (9, 9, 9) at row 0, column 0" in capsys.readouterr().err


def test_a_renumbered_palette_is_repaired_by_its_colours(voc, tmp_path):
    mask = some_mask(9)
    (tmp_path / "colour").mkdir()
    optimised(mask).save(tmp_path / "colour/2007_000032.png")
    arguments = ["--masks", str(tmp_path / "colour"), "--colours", "voc", "--out", str(tmp_path / "masks")]
    assert convert_main(arguments) == 0
    (tmp_path / "masks/2007_000032.png").replace(voc / MASK)
    assert np.array_equal(build_dataset(voc, "voc", "train").load(0)[1], mask)


@pytest.mark.parametrize(("lines", "words"), [
    (["0 0 0 a", "0 0 0 b"], "comes twice"), (["0 0 0 a"], "2 to 255 different"), (["0 0 a", "1 1 1 b"], "red green blue"),
    (["0 0 256 a", "1 1 1 b"], "red green blue"), (["0 0 0 a/b", "1 1 1 b"], "printable"),
])  # fmt: skip
def test_bad_colour_lists_are_named(tmp_path, capsys, lines, words):
    colour_masks(tmp_path / "rgb", {"a": colour(some_mask())})
    write_list(tmp_path / "colours.txt", lines)
    options = [
        "--masks",
        str(tmp_path / "rgb"),
        "--colours",
        str(tmp_path / "colours.txt"),
        "--out",
        str(tmp_path / "m"),
    ]
    assert convert_main(options) == 1
    told = capsys.readouterr().err
    assert "colours.txt" in told and words in told
