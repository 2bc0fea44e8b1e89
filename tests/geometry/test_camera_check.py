"""The one check of cameras: what cannot be meant has a reason, what real captures hold passes."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geometry.camera_check import camera_faults

SIZE = np.array([[640.0, 360.0]])


def good_cameras(frames=5, seed=0):
    rng = np.random.default_rng(seed)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, :3, :3] = Rotation.random(frames, random_state=seed).as_matrix()
    w2c[:, :3, 3] = rng.normal(size=(frames, 3))
    fxfycxcy = np.tile([320.0, 330, 318, 181], (frames, 1)) + rng.normal(size=(frames, 4))
    return fxfycxcy, w2c


def intrinsics(*values):
    def damage(fxfycxcy, w2c):
        fxfycxcy[2] = values

    return damage


def entry(row, column, value):
    def damage(fxfycxcy, w2c):
        w2c[2, row, column] = value

    return damage


def turned(matrix):
    def damage(fxfycxcy, w2c):
        w2c[2, :3, :3] = w2c[2, :3, :3] @ matrix

    return damage


def transposed(fxfycxcy, w2c):
    w2c[2] = w2c[2].T


FAULTS = {
    "nan pose": (entry(0, 3, np.nan), "finite"),
    "infinite pose": (entry(1, 1, -np.inf), "finite"),
    "mirrored": (turned(np.diag([1, 1, -1.0])), "mirrored"),
    "turned inside out": (turned(-np.eye(3)), "mirrored"),
    "swapped axes": (turned(np.eye(3)[[1, 0, 2]]), "mirrored"),
    "scaled": (turned(1.1 * np.eye(3)), "scales"),
    "scaled along one axis": (turned(np.diag([1, 1, 0.9])), "scales"),
    "sheared": (turned(np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])), "shears"),
    "flat": (turned(np.diag([1, 1, 0.0])), "scales"),
    "zero": (turned(np.zeros((3, 3))), "scales"),
    "last row": (entry(3, 0, 0.5), "last row"),
    "last row all zero": (entry(3, 3, 0.0), "last row"),
    "transposed": (transposed, "last row"),
    "far away": (entry(2, 3, 1e9), "translation"),
    "further": (entry(0, 3, -1e300), "translation"),
    "nan focal": (intrinsics(np.nan, 320, 320, 180), "finite"),
    "infinite centre": (intrinsics(320, 320, np.inf, 180), "finite"),
    "no focal": (intrinsics(0, 320, 320, 180), "focal length"),
    "negative focal": (intrinsics(320, -320, 320, 180), "focal length"),
    "shares for pixels": (intrinsics(0.5, 0.9, 0.5, 0.5), "normalized"),
    "pixels for shares": (intrinsics(320 * 640, 320 * 360, 320 * 640, 180 * 360), "outside the image"),
    "centre left": (intrinsics(320, 320, -5, 180), "outside the image"),
    "centre below": (intrinsics(320, 320, 320, 361), "outside the image"),
    "narrow": (intrinsics(1e5, 1e5, 320, 180), "field of view"),
    "wide": (intrinsics(20, 20, 320, 180), "field of view"),
    "narrow one way": (intrinsics(2000, 5000, 320, 180), "field of view"),
    "squeezed": (intrinsics(2000, 300, 320, 180), "times its fy"),
}


@pytest.mark.parametrize(("damage", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_camera_that_cannot_be_meant_has_its_frame_and_a_reason(damage, reason):
    fxfycxcy, w2c = good_cameras()
    damage(fxfycxcy, w2c)
    faults = camera_faults(fxfycxcy, w2c, SIZE)
    assert list(faults) == [2] and reason in faults[2]


def test_good_cameras_have_no_faults():
    assert camera_faults(*good_cameras(300), SIZE) == {}
    assert camera_faults(*good_cameras(300)) == {}


def test_noise_of_float32_and_of_few_digits_passes():
    fxfycxcy, w2c = good_cameras(100)
    for rounded in (w2c.astype(np.float32).astype(float), w2c.round(3)):
        assert camera_faults(fxfycxcy.astype(np.float32).astype(float), rounded, SIZE) == {}


@pytest.mark.parametrize("size", [(640, 272), (360, 640), (256, 256), (4000, 3000)])
@pytest.mark.parametrize("degrees", [6, 50, 140])
def test_any_sensible_lens_passes(size, degrees):
    focal = max(size) / 2 / np.tan(np.radians(degrees) / 2)
    if 2 * np.degrees(np.arctan(min(size) / 2 / focal)) > 5:
        fxfycxcy = np.array([[focal, focal, size[0] / 2, size[1] / 2]])
        assert camera_faults(fxfycxcy, np.eye(4)[None], np.array([size], float)) == {}


def test_without_a_size_what_holds_for_any_size_is_found():
    fxfycxcy, w2c = good_cameras(6)
    fxfycxcy[1] = [0.5, 0.5, 0.5, 0.5]
    fxfycxcy[2, 2] = -1
    fxfycxcy[3] = [20, 20, 320, 180]
    fxfycxcy[4] = [1e5, 1e5, 320, 180]  # an image of 17,000 pixels may be behind it
    assert sorted(camera_faults(fxfycxcy, w2c)) == [1, 2, 3]
    assert sorted(camera_faults(fxfycxcy, w2c, SIZE)) == [1, 2, 3, 4]


def test_several_frames_are_named_each_with_its_first_fault():
    fxfycxcy, w2c = good_cameras()
    w2c[0] = np.nan
    fxfycxcy[0] = np.nan
    w2c[4, :3, :3] *= -1
    faults = camera_faults(fxfycxcy, w2c, SIZE)
    assert sorted(faults) == [0, 4] and "pose" in faults[0] and "mirrored" in faults[4]
