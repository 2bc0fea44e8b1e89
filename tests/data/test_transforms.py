import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.transforms import (
    has_fast_lanczos,
    plan_crop,
    read_image,
    read_pixels,
    resized_shape,
    square_box,
    to_planes,
)
from tests.messages import refused


def test_published_sizes():
    assert resized_shape(640, 360, 256, 8) == (456, 256)
    assert resized_shape(640, 360, 256, 16) == (448, 256)
    assert resized_shape(360, 640, 256, 8) == (256, 456)
    assert resized_shape(300, 300, 256, 8) == (256, 256)
    assert square_box(456, 256) == (100, 0, 356, 256)


@given(st.integers(64, 700), st.integers(64, 700), st.sampled_from([(64, 8), (128, 8), (256, 16)]))
@settings(max_examples=50, deadline=None)
def test_sizes_are_whole_patches_and_the_square_is_full(width, height, sizes):
    size, patch = sizes
    new_width, new_height = resized_shape(width, height, size, patch)
    assert min(new_width, new_height) == size
    assert new_width % patch == new_height % patch == 0


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_3d_point_stays_on_its_pixel(u, v, portrait, square):
    width, height = (90, 160) if portrait else (160, 90)
    fxfycxcy = np.array([110.0, 120.0, 0.45 * width, 0.55 * height])
    x, y = u * width, v * height
    point = np.array([(x - fxfycxcy[2]) / fxfycxcy[0], (y - fxfycxcy[3]) / fxfycxcy[1]])
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 6.0**2))
    image = Image.fromarray((255 * np.repeat(blob[..., None], 3, 2)).astype(np.uint8))
    crop = plan_crop(*image.size, 64, 8, square)
    resized, moved = crop.image(image), crop.intrinsics(fxfycxcy)
    projected = point * moved[:2] + moved[2:]
    if not all(8 < p < side - 8 for p, side in zip(projected, resized.size, strict=True)):
        return
    weights = np.asarray(resized, dtype=float)[..., 0]
    rows, columns = np.mgrid[0 : weights.shape[0], 0 : weights.shape[1]] + 0.5
    centre = [(weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()]
    near_edge = any(p < 16 or p > side - 16 for p, side in zip(projected, resized.size, strict=True))
    np.testing.assert_allclose(centre, projected, atol=1.5 if near_edge else 0.1)


def test_square_crop_cuts_the_middle():
    pixels = np.zeros((360, 640, 3), np.uint8)
    pixels[:, 320:] = 255
    crop = plan_crop(640, 360, 256, 8, True)
    image, fxfycxcy = crop.image(Image.fromarray(pixels)), crop.intrinsics(np.array([500.0, 500, 320, 180]))
    assert image.size == (256, 256)
    assert np.asarray(image)[:, :126].max() == 0
    assert np.asarray(image)[:, 130:].min() == 255
    np.testing.assert_allclose(fxfycxcy, [500 * 456 / 640, 500 * 256 / 360, 128, 128])


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


@pytest.mark.parametrize("size", [(640, 360), (640, 338), (640, 272), (360, 640), (333, 500), (1920, 1080), (64, 48)])
@pytest.mark.parametrize("square", [True, False])
def test_cutting_first_gives_the_same_pixels(size, square):
    crop, image = plan_crop(*size, 256, 8, square), noise(*size)
    np.testing.assert_array_equal(np.asarray(crop.image(image)), whole_then_cut(crop, image))
    if size == (640, 360) and square:
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
