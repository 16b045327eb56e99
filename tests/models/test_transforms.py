"""The joint transforms against slow, literal references."""

import numpy as np
import pytest
import torch

from models.data import IGNORE, RECIPES, build_transform
from models.data.transforms import centre, distort, draw_start, resize


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 256, (height, width, 3)), rng.integers(0, 21, (height, width))
    return image.astype(np.uint8), mask.astype(np.uint8)


def slow_nearest(mask, height, width):
    """Each output pixel looks up the input pixel under its centre."""
    out = np.empty((height, width), mask.dtype)
    for y in range(height):
        for x in range(width):
            out[y, x] = mask[(2 * y + 1) * mask.shape[0] // (2 * height), (2 * x + 1) * mask.shape[1] // (2 * width)]
    return out


def slow_bilinear(line, length):
    """One axis of antialiased bilinear resampling: a triangle as wide as the larger of the two pixels."""
    ratio = len(line) / length
    width = max(ratio, 1.0)
    out = np.zeros((length, *line.shape[1:]))
    for i in range(length):
        middle = (i + 0.5) * ratio
        weights = np.array([max(0.0, 1 - abs((j + 0.5 - middle) / width)) for j in range(len(line))])
        out[i] = np.tensordot(weights / weights.sum(), line, 1)
    return out


@pytest.mark.parametrize("scale", [0.5, 0.61, 0.99, 1.0, 1.37, 1.5, 2.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 12), (31, 20)])
def test_resize_equals_the_definition(size, scale):
    image, mask = picture(*size)
    got_image, got_mask = resize(image, mask, scale)
    height, width = (max(1, round(side * scale)) for side in size)
    assert got_mask.shape == (height, width)
    np.testing.assert_array_equal(got_mask, slow_nearest(mask, height, width))
    rows = slow_bilinear(image.astype(float), height)
    expected = slow_bilinear(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    # Pillow rounds to 8 bits after each of the two axes: half a level each, and one for fixed-point weights
    assert np.abs(got_image - expected).max() <= 1.5


@pytest.mark.parametrize("recipe", RECIPES)
def test_normalise_is_the_formula_and_inverts_exactly(recipe):
    image = np.arange(256, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    image[:, 1, 0] = 255 - image[:, 1, 0]
    got = RECIPES[recipe].normalise(image)
    if recipe == "authors":
        mean = np.array([104.00698793, 116.66876762, 122.67891434])  # blue, green, red
        expected = image[..., ::-1].astype(float) - mean
    else:
        expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=2e-5)
    np.testing.assert_array_equal(RECIPES[recipe].denormalise(got), image)


def draws(recipe, seed, crop, size):
    """Repeat the documented order of draws: flip, scale, top, left."""
    rng = np.random.default_rng(seed)
    flip = rng.random() < 0.5
    if recipe == "default":
        scale = rng.uniform(0.5, 1.5)
        first = 0
    else:
        scale = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4][rng.integers(10)]
        first = 1
    starts = []
    for side in size:
        room = round(side * scale) - crop
        starts.append(rng.integers(min(first, room), room + 1) if room > 0 else 0)
    return flip, scale, starts


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", range(12))
def test_a_training_sample_is_flip_scale_crop_pad(recipe, seed):
    crop, size = 40, (37, 52)
    image, mask = picture(*size, seed)
    got_image, got_mask = build_transform(recipe, train=True, crop=crop)(image, mask, np.random.default_rng(seed))
    flip, scale, (top, left) = draws(recipe, seed, crop, size)
    if flip:
        image, mask = np.flip(image, 1), np.flip(mask, 1)
    image, mask = resize(image, mask, scale)
    normalised = RECIPES[recipe].normalise(image)
    label = {"default": 255, "authors": 0}[recipe]
    assert got_image.shape == (3, crop, crop) and got_image.dtype == torch.float32
    assert got_mask.shape == (crop, crop) and got_mask.dtype == torch.int64
    for y in range(crop):
        for x in range(crop):
            if top + y < mask.shape[0] and left + x < mask.shape[1]:
                assert got_mask[y, x] == mask[top + y, left + x]
                assert torch.equal(got_image[:, y, x], normalised[:, top + y, left + x])
            else:
                assert got_mask[y, x] == label
                assert not got_image[:, y, x].any()


@pytest.mark.smoke
def test_image_and_mask_move_together():
    """Where the mask is encoded in the image, they still agree after flip, crop and padding (no resampling)."""
    _, mask = picture(60, 70)
    image = np.repeat(mask[..., None], 3, 2)
    recipe = RECIPES["default"]
    transform = build_transform("default", train=True, crop=50)
    object.__setattr__(transform, "recipe", type(recipe)(**{**recipe.__dict__, "scales": (1.0, 1.0)}))
    for seed in range(10):
        got_image, got_mask = transform(image, mask, np.random.default_rng(seed))
        assert np.array_equal(recipe.denormalise(got_image)[..., 0], got_mask.numpy())


def test_scales_and_starts_cover_their_range():
    rng = np.random.default_rng(0)
    continuous = [RECIPES["default"].draw_scale(rng) for _ in range(2000)]
    assert 0.5 <= min(continuous) < 0.51 and 1.49 < max(continuous) <= 1.5
    stepped = {RECIPES["authors"].draw_scale(rng) for _ in range(500)}
    assert sorted(stepped) == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]
    assert {draw_start(13, 10, 0, rng) for _ in range(200)} == {0, 1, 2, 3}
    assert {draw_start(13, 10, 1, rng) for _ in range(200)} == {1, 2, 3}  # the authors' crops never start at 0
    assert {draw_start(10, 10, 1, rng) for _ in range(9)} == {0}
    assert {draw_start(4, 10, 1, rng) for _ in range(9)} == {0}


@pytest.mark.smoke
@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_padding_is_centred_void_and_mean_coloured(recipe):
    image, mask = picture(30, 41)
    got_image, got_mask = build_transform(recipe, crop=50)(image, mask)
    top, left = 10, 4  # the odd pixel of 50 − 41 goes right
    assert centre((30, 41), 50) == (top, left)
    inside = torch.zeros(50, 50, dtype=torch.bool)
    inside[top : top + 30, left : left + 41] = True
    assert torch.equal(got_mask[inside], torch.tensor(mask, dtype=torch.int64).flatten())
    assert torch.equal(got_image[:, inside], RECIPES[recipe].normalise(image).flatten(1))
    assert (got_mask[~inside] == IGNORE).all() and not got_image[:, ~inside].any()


def test_native_size_changes_nothing_but_units():
    image, mask = picture(5, 9)
    got_image, got_mask = build_transform()(image, mask)
    assert got_image.shape == (3, 5, 9)
    assert np.array_equal(got_mask, mask) and np.array_equal(RECIPES["default"].denormalise(got_image), image)


def test_chance_comes_from_the_generator_alone():
    image, mask = picture(80, 60)
    transform = build_transform("default", train=True, crop=33)
    first = transform(image, mask, np.random.default_rng(5))
    torch.manual_seed(1), np.random.seed(1)
    second = transform(image, mask, np.random.default_rng(5))
    other = transform(image, mask, np.random.default_rng(6))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_transform("caffe"), "default, authors"),
        (lambda: build_transform(crop=0), "positive"),
        (lambda: build_transform(train=True, crop=9)(*picture(9, 9)), "default_rng"),
        (lambda: build_transform(crop=8)(*picture(9, 5)), "native size"),
    ],
)
def test_bad_requests_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_photometric_changes_colours_and_nothing_else():
    """The same seed gives the same flip, scale and crop with and without; masks are equal, images are not."""
    image, mask = picture(31, 37)
    plain = build_transform(train=True, crop=20)(image, mask, np.random.default_rng(5))
    strong = build_transform(train=True, crop=20, photometric=0.5)
    one, other = (strong(image, mask, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(one[1], plain[1]) and not torch.equal(one[0], plain[0])
    assert torch.equal(one[0], other[0])
    assert not torch.equal(strong(image, mask, np.random.default_rng(6))[0], one[0])
    with pytest.raises(ValueError, match="photometric must be a strength in 0…1"):
        build_transform(photometric=1.5)


def test_photometric_strengths():
    """Grey stays grey whatever the hue, within 1 ± strength; strength zero draws nothing; hues turn."""
    grey = np.full((6, 6, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    assert distort(grey, 0.0, rng) is grey and rng.random() == np.random.default_rng(0).random()
    for seed in range(20):
        changed = distort(grey, 0.2, np.random.default_rng(seed)).astype(int)
        assert np.ptp(changed) <= 1 and 79 <= changed.mean() <= 121
    red = np.zeros((4, 4, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    assert len({tuple(distort(red, 1.0, np.random.default_rng(seed))[0, 0]) for seed in range(10)}) > 5
