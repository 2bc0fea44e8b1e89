"""Each correction undoes what its misreading does, to cameras and to what they see."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geometry.misreadings import MISREADINGS, corrected_cameras
from tests.camera_cases import MISREAD

SIZES = np.tile([480.0, 270.0], (5, 1))
TURNED = {
    # Where a pixel (x, y) of an upright image of w by h pixels lies in the turned one, and that one's size.
    "images upside down": (lambda x, y, w, h: (w - x, h - y), lambda w, h: (w, h)),
    "images turned clockwise": (lambda x, y, w, h: (h - y, x), lambda w, h: (h, w)),
    "images turned counterclockwise": (lambda x, y, w, h: (y, w - x), lambda w, h: (h, w)),
    "mirrored left to right": (lambda x, y, w, h: (w - x, y), lambda w, h: (w, h)),
    "mirrored top to bottom": (lambda x, y, w, h: (x, h - y), lambda w, h: (w, h)),
    "x and y swapped": (lambda x, y, w, h: (y, x), lambda w, h: (h, w)),
}
MIRRORED = {
    "mirrored left to right": np.diag([-1.0, 1, 1]),
    "mirrored top to bottom": np.diag([1.0, -1, 1]),
    "x and y swapped": np.eye(3)[[1, 0, 2]],
}


def cameras(centre=(240, 135)):
    w2c = np.tile(np.eye(4), (5, 1, 1))
    w2c[:, :3, :3] = Rotation.random(5, random_state=0).as_matrix()
    w2c[:, :3, 3] = np.random.default_rng(0).normal(size=(5, 3))
    return np.tile([300.0, 310, *centre], (5, 1)), w2c


@pytest.mark.parametrize("name", MISREAD)
def test_a_correction_undoes_the_misreading(name):
    lens, w2c = cameras()
    corrected = MISREADINGS[name].correct(*MISREAD[name](lens, w2c), SIZES)
    np.testing.assert_allclose(corrected[0], lens)
    np.testing.assert_allclose(corrected[1], w2c, atol=1e-12)


@pytest.mark.parametrize("name", TURNED)
def test_corrected_cameras_see_points_where_changed_images_show_them(name):
    place, size = TURNED[name]
    lens, w2c = cameras(centre=(231, 140))
    world = np.random.default_rng(1).normal(size=(20, 3))

    def project(lens, w2c, world):
        inside = np.einsum("vij,pj->vpi", w2c[:, :3, :3], world) + w2c[:, None, :3, 3]
        return inside[..., :2] / inside[..., 2:] * lens[:, None, :2] + lens[:, None, 2:]

    upright = project(lens, w2c, world)
    changed = np.stack(place(upright[..., 0], upright[..., 1], *SIZES[0]), axis=-1)
    sizes = np.tile(size(*SIZES[0]), (5, 1))
    corrected = MISREADINGS[name].correct(lens, w2c, sizes)
    np.testing.assert_allclose(project(*corrected, world @ MIRRORED.get(name, np.eye(3))), changed, atol=1e-9)


def test_corrections_that_change_nothing_are_left_out():
    lens, w2c = cameras(centre=(240, 135))
    assert "intrinsics of another size" not in corrected_cameras(lens, w2c, SIZES)
    square = np.tile([300.0, 300, 135, 135], (5, 1))
    found = corrected_cameras(square, w2c, np.tile([270.0, 270], (5, 1)))
    assert "intrinsics with x and y swapped" not in found and "c2w for w2c" in found


def test_a_principal_point_at_the_edge_tells_no_size():
    lens, w2c = cameras(centre=(0, 0))
    assert all(np.isfinite(found[0]).all() for found in corrected_cameras(lens, w2c, SIZES).values())
