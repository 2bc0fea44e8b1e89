"""The browser's camera and the model's: the same pixels of the window, whatever its shape and the lens."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geometry.cameras import Cameras
from tests.helpers import random_cameras
from tests.messages import refused
from viewer.geometry import (
    WORLD_SCALE,
    at_viewpoint,
    fitting_fov,
    is_at,
    letterbox,
    picture_box,
    read_viewpoint,
    to_world,
    vertical_fov,
    with_fov,
    with_size,
)

WINDOWS = [(1280, 800), (800, 1280), (501, 499)]
# Focal lengths and principal points of square and other pictures; not centred, pixels not square.
LENSES = [(40.0, 40.0, 16.0, 16.0, 32, 32), (35.0, 44.0, 13.0, 18.5, 32, 32), (50.0, 48.0, 25.0, 15.0, 32, 48)]


def lens(fx, fy, cx, cy, height, width):
    return Cameras(torch.eye(4), torch.tensor([fx, fy, cx, cy]), height, width)


def somewhere(seed=0):
    rng = np.random.default_rng(seed)
    xyzw = Rotation.random(random_state=seed).as_quat()
    return xyzw[[3, 0, 1, 2]], rng.uniform(-2, 2, 3)


def seen_by_window(wxyz, position, fov, width, height, point):
    """The pixel of a point of the window's world, by the formulas of three.js (which has y up)."""
    x, y, z = Rotation.from_quat(wxyz[[1, 2, 3, 0]]).as_matrix().T @ (point - position)
    top = math.tan(fov / 2)
    ndc = x / z / (top * width / height), -y / z / top
    return (ndc[0] + 1) / 2 * width, (1 - ndc[1]) / 2 * height


def seen_by_model(camera, point):
    """The pixel of a point of the model's frame in the picture, by the pinhole camera of geometry/cameras.py."""
    inverse = np.linalg.inv(camera.c2w.double().numpy())
    x, y, z = inverse[:3, :3] @ point + inverse[:3, 3]
    fx, fy, cx, cy = camera.fxfycxcy.double().tolist()
    return fx * x / z + cx, fy * y / z + cy


def in_front(wxyz, position, depth=3.0):
    rotation = Rotation.from_quat(wxyz[[1, 2, 3, 0]]).as_matrix()
    return position + rotation @ [0.3 * depth, -0.2 * depth, depth]


@pytest.mark.parametrize("size", WINDOWS)
@pytest.mark.parametrize("values", LENSES)
@pytest.mark.parametrize("zoomed", [False, True])
def test_a_point_is_on_one_pixel_by_both_cameras(size, values, zoomed):
    width, height = size
    wxyz, position = somewhere()
    seen = with_fov(lens(*values), 0.9) if zoomed else lens(*values)
    for fov in (fitting_fov(seen, width / height), 1.2):
        viewpoint = read_viewpoint(wxyz, position, fov, width, height)
        point = in_front(wxyz, position)
        u, v = seen_by_model(at_viewpoint(viewpoint, seen), point / WORLD_SCALE)
        left, top, right, bottom = picture_box(seen, viewpoint)
        across = left + u * (right - left) / seen.width
        down = top + v * (bottom - top) / seen.height
        assert (across, down) == pytest.approx(seen_by_window(wxyz, position, fov, width, height, point), abs=1e-2)


@pytest.mark.parametrize("size", WINDOWS)
@pytest.mark.parametrize("values", LENSES)
def test_the_picture_just_fits(size, values):
    seen = lens(*values)
    viewpoint = read_viewpoint(*somewhere(), fitting_fov(seen, size[0] / size[1]), *size)
    left, top, right, bottom = picture_box(seen, viewpoint)
    assert min(left, top) >= -1e-6 and right <= size[0] + 1e-6 and bottom <= size[1] + 1e-6
    # One edge at least touches the window's.
    assert min(left, top, size[0] - right, size[1] - bottom) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", WINDOWS)
@pytest.mark.parametrize("values", LENSES)
def test_what_is_painted_lies_where_the_point_is(size, values):
    """A bright spot in the picture is found in the window where the browser would draw the point."""
    width, height = size
    wxyz, position = somewhere(1)
    seen = with_size(lens(*values), values[4] * 4, values[5] * 4)
    viewpoint = read_viewpoint(wxyz, position, fitting_fov(seen, width / height), width, height)
    point = in_front(wxyz, position)
    u, v = seen_by_model(at_viewpoint(viewpoint, seen), point / WORLD_SCALE)
    rows, columns = np.mgrid[: seen.height, : seen.width] + 0.5
    spot = np.exp(-((rows - v) ** 2 + (columns - u) ** 2) / 8)
    window = letterbox((255 * spot[..., None].repeat(3, -1)).round().astype(np.uint8), seen, viewpoint)
    light = np.where(window[..., 0] > 60, window[..., 0], 0).astype(float)
    rows, columns = np.mgrid[: window.shape[0], : window.shape[1]] + 0.5
    found = (columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()
    expected = seen_by_window(wxyz, position, viewpoint.fov, width, height, point)
    # Within a pixel of the window.
    assert found[0] * width / window.shape[1] == pytest.approx(expected[0], abs=1)
    assert found[1] * height / window.shape[0] == pytest.approx(expected[1], abs=1)


def test_beside_the_picture_are_bars():
    picture = np.full((32, 32, 3), 200, np.uint8)
    seen = lens(*LENSES[0])
    for width, height in [(900, 300), (300, 900)]:
        viewpoint = read_viewpoint(*somewhere(), fitting_fov(seen, width / height), width, height)
        bright = letterbox(picture, seen, viewpoint)[..., 0] == 200
        share = bright.mean()
        assert share == pytest.approx(1 / 3, abs=0.01)
        assert bright.all(0).any() == (width > height) and bright.all(1).any() == (width < height)


def test_a_window_that_looks_elsewhere_has_no_picture():
    # The field of view may not be the fitting one yet, or a client may claim any.
    seen = lens(*LENSES[0])
    for fov in (0.002, 3.13):
        viewpoint = read_viewpoint(*somewhere(), fov, 640, 480)
        assert letterbox(np.zeros((32, 32, 3), np.uint8), seen, viewpoint).shape == (480, 640, 3)


def test_poses_come_back():
    for seed in range(5):
        wxyz, position = somewhere(seed)
        viewpoint = read_viewpoint(3 * wxyz, position, 1.0, 640, 480)
        again, place = to_world(viewpoint.c2w)
        assert abs(again @ wxyz) == pytest.approx(1) and place == pytest.approx(position)


def test_a_viewpoint_is_at_its_own_camera_alone():
    cameras = random_cameras(2)
    wxyz, position = to_world(cameras.c2w[0].double().numpy())
    viewpoint = read_viewpoint(wxyz.astype(np.float32), position.astype(np.float32), 1.0, 640, 480)
    assert is_at(viewpoint, cameras[0]) and not is_at(viewpoint, cameras[1])


def test_another_field_of_view_is_the_one_asked_for():
    for values in LENSES[:1]:
        assert vertical_fov(with_fov(lens(*values), 1.1)) == pytest.approx(1.1)


GOOD = {"wxyz": (1.0, 0.0, 0.0, 0.0), "position": (0.0, 0.0, 0.0), "fov": 1.0, "width": 640, "height": 480}


@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        ({"wxyz": (math.nan, 0, 0, 1)}, "orientation"),
        ({"wxyz": (0, 0, 0, 0)}, "orientation"),
        ({"wxyz": (1, 0, 0)}, "orientation"),
        ({"wxyz": ("a", "b", "c", "d")}, "orientation"),
        ({"position": (math.inf, 0, 0)}, "position"),
        ({"position": (1e30, 0, 0)}, "position"),
        ({"position": ((1, 2), 3)}, "position"),
        ({"fov": math.nan}, "field of view"),
        ({"fov": 4.0}, "field of view"),
        ({"width": 0}, "window"),
        ({"height": 10**9}, "window"),
    ],
)
def test_cameras_that_cannot_be_are_refused(wrong, culprit):
    with refused(culprit):
        read_viewpoint(**(GOOD | wrong))
