"""What cameras look at, which way is up to them, and circles around it."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geometry.cameras import Cameras, orient
from geometry.orbit import Orbit, find_orbit, nearest_to_axes, orbit_around, upwards
from geometry.paths import VideoConfig, camera_path

CENTRE = np.array([0.3, -0.2, 0.5])
UP = np.array([0.1, -0.4, 0.9]) / np.linalg.norm([0.1, -0.4, 0.9])


def around(count, seed=0, radius=(2.0, 3.0), miss=0.0):
    """c2w of upright cameras on all sides of `CENTRE` that look at it, or past it by up to `miss`."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, 3] = CENTRE + rng.uniform(*radius, (count, 1)) * direction
    target = CENTRE + miss * rng.uniform(-1, 1, (count, 3))
    c2w[:, :3, :3] = orient(target - c2w[:, :3, 3], np.broadcast_to(-UP, (count, 3)))
    return c2w


def walk(turn=0.4, count=12):
    """c2w of one who walks along z and turns the view by `turn` radians, level."""
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = Rotation.from_euler("y", np.linspace(0, turn, count)[:, None]).as_matrix()
    c2w[:, 2, 3] = np.linspace(0, 2, count)
    return c2w


@pytest.mark.parametrize("count", [2, 4, 30])
def test_the_point_that_all_axes_pass_is_found(count):
    np.testing.assert_allclose(nearest_to_axes(around(count)), CENTRE, atol=1e-9)
    found = find_orbit(around(30, miss=0.05))
    np.testing.assert_allclose(found.centre, CENTRE, atol=0.03)


def test_parallel_axes_pass_no_point():
    c2w = np.tile(np.eye(4), (3, 1, 1))
    c2w[:, 0, 3] = [0, 1, 2]
    assert nearest_to_axes(c2w) is None and nearest_to_axes(c2w[:1]) is None and find_orbit(c2w) is None
    np.testing.assert_allclose(orbit_around(c2w, 4.0).centre, [1, 0, 4])


@pytest.mark.parametrize("count", [2, 3, 30])
def test_up_is_perpendicular_to_level_axes(count):
    np.testing.assert_allclose(upwards(around(count)), UP, atol=1e-9)


def test_up_of_one_camera_or_of_cameras_side_by_side_is_their_own():
    one = around(1)
    np.testing.assert_allclose(upwards(one), -one[0, :3, 1])
    side_by_side = np.repeat(one, 3, axis=0)
    np.testing.assert_allclose(upwards(side_by_side), -one[0, :3, 1], atol=1e-9)


@pytest.mark.parametrize("turn", [0.0, 0.4, 0.9])
def test_one_who_walks_through_a_room_is_around_nothing(turn):
    assert find_orbit(walk(turn)) is None
    assert find_orbit(walk(turn)[[0, -1]]) is None


def test_cameras_that_look_elsewhere_are_around_nothing():
    assert find_orbit(around(8, miss=1.0)) is None
    outwards = around(8)
    outwards[:, :3, :3] = outwards[:, :3, :3] @ np.diag([-1.0, 1, -1])
    assert find_orbit(outwards) is None


def test_a_circle_is_upright_closed_and_looks_at_the_centre():
    c2w = Orbit(CENTRE, UP).circle(np.array([4.0, 0, 0]), 2.0, 0.3, 9)
    offsets = c2w[:, :3, 3] - CENTRE
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 2.0)
    np.testing.assert_allclose(offsets @ UP, 2 * np.sin(0.3))
    np.testing.assert_allclose(c2w[:, :3, 2], -offsets / 2, atol=1e-12)
    np.testing.assert_allclose(c2w[:, :3, 0] @ UP, 0, atol=1e-12)
    assert np.all(c2w[:, :3, 1] @ UP < 0)
    np.testing.assert_allclose(c2w[0], c2w[-1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(np.diff(offsets, axis=0), axis=1).std(), 0, atol=1e-9)


def test_the_path_passes_the_first_camera_where_all_stand_at_one_height():
    ring = Orbit(CENTRE, UP).circle(np.array([1.0, 2, 3]), 2.5, 0.4, 6)[:5]
    cameras = Cameras(torch.from_numpy(ring), torch.tensor([[50.0, 50, 16, 16]] * 5).double(), 32, 32)
    path = camera_path(VideoConfig("orbit", num_frames=13), cameras)
    torch.testing.assert_close(path.c2w[0], cameras.c2w[0])
    for camera in cameras.c2w:
        assert (path.c2w - camera).abs().amax((1, 2)).min() < 0.6
    assert torch.equal(path.fxfycxcy, cameras.fxfycxcy[:1].expand(13, 4))


def test_the_path_has_the_mean_distance_and_elevation():
    c2w = around(20, seed=3)
    path = orbit_around(c2w, 1.0).mean_circle(c2w, 5)
    offsets = c2w[:, :3, 3] - CENTRE
    distance = np.linalg.norm(offsets, axis=1)
    found = path[:, :3, 3] - CENTRE
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), distance.mean())
    np.testing.assert_allclose(np.arcsin(found @ UP / distance.mean()), np.arcsin(offsets @ UP / distance).mean())


def test_cameras_above_one_another_give_a_circle_all_the_same():
    c2w = around(1)
    c2w[0, :3, :3] = orient(-UP, np.array([1.0, 0, 0]))
    c2w[0, :3, 3] = CENTRE + 2 * UP
    assert np.isfinite(Orbit(CENTRE, UP).mean_circle(c2w, 4)).all()
