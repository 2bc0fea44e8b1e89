import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.transforms import (
    centred_box,
    has_fast_lanczos,
    plan_crop,
    read_image,
    read_pixels,
    resized_shape,
    to_planes,
)
from tests.messages import refused


def test_published_sizes():
    assert resized_shape(640, 360, 256, 8) == (456, 256)
    assert resized_shape(640, 360, 256, 16) == (448, 256)
    assert resized_shape(360, 640, 256, 8) == (256, 456)
    assert resized_shape(300, 300, 256, 8) == (256, 256)
    assert centred_box(456, 256, 256) == (100, 0, 356, 256)


def test_wide_sizes():
    assert resized_shape(640, 360, [256, 448], 8) == (456, 256)
    assert centred_box(456, 256, [256, 448]) == (4, 0, 452, 256)
    # Rooms of 256 x 144 are covered to the pixel, from wider and narrower images more is cut.
    assert resized_shape(256, 144, [128, 224], 8) == (224, 128)
    assert resized_shape(640, 272, [256, 448], 8) == (600, 256)
    assert resized_shape(360, 640, [256, 448], 8) == (448, 800)
    assert centred_box(448, 800, [256, 448]) == (0, 272, 448, 528)
    assert resized_shape(640, 480, [256, 448], 8) == (448, 336)


def published_shape(width, height, size, patch):
    """The formula of squares: the height given, the width in whole patches; of portrait images the other way round."""
    if width < height:
        return published_shape(height, width, size, patch)[::-1]
    return round(int(size / height * width) / patch) * patch, size


SQUARES = [(16, 4), (128, 8), (256, 8), (256, 16), (512, 8)]


@given(st.integers(16, 2000), st.integers(16, 2000), st.sampled_from(SQUARES))
@settings(max_examples=200, deadline=None)
def test_squares_are_resized_and_cut_as_published(width, height, sizes):
    size, patch = sizes
    resized = published_shape(width, height, size, patch)
    for given_size in (size, [size, size]):
        assert resized_shape(width, height, given_size, patch) == resized
        left, top = ((side - size) // 2 for side in resized)
        assert centred_box(*resized, given_size) == (left, top, left + size, top + size)


@given(st.integers(16, 2000), st.integers(16, 2000), st.sampled_from([([64, 112], 8), ([24, 16], 8), ([16, 32], 1)]))
@settings(max_examples=100, deadline=None)
def test_an_image_just_covers_a_wide_size(width, height, sizes):
    (rows, columns), patch = sizes
    across, down = resized_shape(width, height, [rows, columns], patch)
    assert across >= columns and down >= rows and (across == columns or down == rows)
    assert across % patch == down % patch == 0
    scale = max(columns / width, rows / height)
    assert abs(across - scale * width) <= patch / 2 + 1 and abs(down - scale * height) <= patch / 2 + 1


@given(st.integers(64, 700), st.integers(64, 700), st.sampled_from([(64, 8), (128, 8), (256, 16)]))
@settings(max_examples=50, deadline=None)
def test_sizes_are_whole_patches_and_the_square_is_full(width, height, sizes):
    size, patch = sizes
    new_width, new_height = resized_shape(width, height, size, patch)
    assert min(new_width, new_height) == size
    assert new_width % patch == new_height % patch == 0


CUTS = [(64, True), (64, False), ([64, 112], True), ([72, 48], True)]


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.booleans(), st.sampled_from(CUTS))
@settings(max_examples=25, deadline=None)
def test_a_3d_point_stays_on_its_pixel(u, v, portrait, cut):
    width, height = (90, 160) if portrait else (160, 90)
    fxfycxcy = np.array([110.0, 120.0, 0.45 * width, 0.55 * height])
    x, y = u * width, v * height
    point = np.array([(x - fxfycxcy[2]) / fxfycxcy[0], (y - fxfycxcy[3]) / fxfycxcy[1]])
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 6.0**2))
    image = Image.fromarray((255 * np.repeat(blob[..., None], 3, 2)).astype(np.uint8))
    crop = plan_crop(*image.size, cut[0], 8, cut[1])
    resized, moved = crop.image(image), crop.intrinsics(fxfycxcy)
    projected = point * moved[:2] + moved[2:]
    # An enlarged blob is cut by the edges sooner.
    enlarged = crop.scale.max() / (64 / 90)
    inside = [min(p, side - p) / enlarged for p, side in zip(projected, resized.size, strict=True)]
    if min(inside) < 8:
        return
    weights = np.asarray(resized, dtype=float)[..., 0]
    rows, columns = np.mgrid[0 : weights.shape[0], 0 : weights.shape[1]] + 0.5
    centre = [(weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()]
    np.testing.assert_allclose(centre, projected, atol=enlarged * (1.5 if min(inside) < 16 else 0.1))


def test_square_crop_cuts_the_middle():
    pixels = np.zeros((360, 640, 3), np.uint8)
    pixels[:, 320:] = 255
    crop = plan_crop(640, 360, 256, 8, True)
    image, fxfycxcy = crop.image(Image.fromarray(pixels)), crop.intrinsics(np.array([500.0, 500, 320, 180]))
    assert image.size == (256, 256)
    assert np.asarray(image)[:, :126].max() == 0
    assert np.asarray(image)[:, 130:].min() == 255
    np.testing.assert_allclose(fxfycxcy, [500 * 456 / 640, 500 * 256 / 360, 128, 128])


def test_a_wide_crop_keeps_what_a_square_one_has():
    image, fxfycxcy = noise(256, 144), np.array([220.0, 221, 127, 73])
    wide, square = (plan_crop(256, 144, size, 8, True) for size in ([128, 224], 128))
    np.testing.assert_array_equal(np.asarray(wide.image(image))[:, 48:176], np.asarray(square.image(image)))
    np.testing.assert_allclose(wide.intrinsics(fxfycxcy) - square.intrinsics(fxfycxcy), [0, 0, 48, 0])
    np.testing.assert_allclose(wide.intrinsics(fxfycxcy), fxfycxcy * np.array([224 / 256, 128 / 144] * 2))
    np.testing.assert_allclose(wide.stored_intrinsics(wide.intrinsics(fxfycxcy)), fxfycxcy)


def test_planes_are_channels_first():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(to_planes(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


def test_unreadable_images_are_named(tmp_path):
    with refused("scene a, frame 3", tmp_path / "x.jpg", "not found"):
        read_image(tmp_path / "x.jpg", "scene a, frame 3")
    path = tmp_path / "y.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with refused("frame 4", path, "decoded"):
        read_image(path, "frame 4")


def whole_then_cut(crop, image):
    """What a crop stands for: the whole image resized, then the box cut out."""
    return np.asarray(image.resize(crop.resized, Image.Resampling.LANCZOS).crop(crop.box))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_an_image_of_the_right_size_keeps_its_pixels(size):
    image, crop = noise(*size), plan_crop(*size, 32, 8, True)
    expected = to_planes(image)[:, :, crop.box[0] : crop.box[2]]
    np.testing.assert_array_equal(to_planes(crop.image(image)), expected)
    np.testing.assert_array_equal(crop.pixels(torch.from_numpy(to_planes(image))), expected)


@pytest.mark.parametrize("size", [(640, 360), (640, 338), (640, 272), (360, 640), (333, 500), (1920, 1080), (64, 48)])
@pytest.mark.parametrize(("image_size", "cut"), [(256, True), (256, False), ([128, 224], True)])
def test_cutting_first_gives_the_same_pixels(size, image_size, cut):
    crop, image = plan_crop(*size, image_size, 8, cut), noise(*size)
    np.testing.assert_array_equal(np.asarray(crop.image(image)), whole_then_cut(crop, image))
    if size == (640, 360) and image_size == 256 and cut:
        assert crop._narrowed(*size) == ((80, 0, 560, 360), (342, 256), (43, 0, 299, 256))


@pytest.mark.skipif(not has_fast_lanczos(), reason="this torch has no Lanczos for tensors")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_fast_path_differs_by_two_of_255_at_most(tmp_path, suffix):
    path, crop = tmp_path / f"image{suffix}", plan_crop(640, 360, 256, 8, True)
    noise(640, 360).save(path)
    pixels = read_pixels(path, "here")
    np.testing.assert_array_equal(pixels.numpy(), to_planes(read_image(path, "here")))
    exact, fast = to_planes(crop.image(read_image(path, "here"))).astype(int), crop.pixels(pixels).astype(int)
    assert 0 < np.abs(exact - fast).max() <= 2


def test_the_fast_path_reads_what_the_exact_one_does(tmp_path):
    path = tmp_path / "image.jpg"
    noise(64, 48).save(path)
    path.write_bytes(path.read_bytes() + b"written behind by a camera")
    np.testing.assert_array_equal(read_pixels(path, "here").numpy(), to_planes(read_image(path, "here")))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_broken_images_are_refused_on_the_fast_path_too(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    with refused("here", path, "not found"):
        read_pixels(path, "here")
    noise(64, 48).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image"):
        path.write_bytes(content)
        with refused("here", path, "decoded"):
            read_pixels(path, "here")
