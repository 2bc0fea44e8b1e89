import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.transforms import plan_crop, read_image, resized_shape, square_box, to_planes
from utils.errors import InputError


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
    with pytest.raises(InputError, match=r"scene a, frame 3: image not found: .*x.jpg"):
        read_image(tmp_path / "x.jpg", "scene a, frame 3")
    path = tmp_path / "y.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"frame 4: image cannot be decoded: .*y.jpg"):
        read_image(path, "frame 4")
