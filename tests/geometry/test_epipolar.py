"""Epipolar geometry against plain formulas and points whose projections are known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geometry import epipolar
from geometry.epipolar import CameraPair

LENSES = (np.array([420.0, 440, 250, 130]), np.array([500.0, 480, 230, 140]))
OPPOSITE = np.diag([-1.0, -1, -1, 1])


def pose(turn, position):
    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_euler("yxz", turn, degrees=True).as_matrix()
    c2w[:3, 3] = position
    return np.linalg.inv(c2w)


def project(w2c, lens, world):
    inside = world @ w2c[:3, :3].T + w2c[:3, 3]
    return inside[:, :2] / inside[:, 2:] * lens[:2] + lens[2:], inside[:, 2]


def pair_of(relative):
    return CameraPair(relative, *LENSES)


@pytest.fixture
def seen():
    """Two cameras, and 50 points in front of both with their projections."""
    rng = np.random.default_rng(0)
    poses = pose([3, -2, 1], [0, 0, 0]), pose([-8, 1, 2], [0.5, -0.1, 0.2])
    world = rng.uniform([-1, -1, 3], [1, 1, 6], (50, 3))
    first, depth = project(poses[0], LENSES[0], world)
    second, other_depth = project(poses[1], LENSES[1], world)
    return epipolar.relative_pose(*poses), first, second, np.stack([depth, other_depth], 1)


def test_projections_of_a_point_lie_on_each_others_lines(seen):
    relative, first, second, _ = seen
    fundamental = epipolar.fundamental_matrix(pair_of(relative))
    assert epipolar.symmetric_epipolar_distance(fundamental, first, second).max() < 1e-9
    assert epipolar.symmetric_distance_in_front(pair_of(relative), first, second).max() < 1e-9


def test_symmetric_distance_is_that_of_two_points_of_the_line(seen):
    relative, first, second, _ = seen
    second = second + np.random.default_rng(1).normal(0, 4, second.shape)

    def plain(pose, lenses, point, partner):
        """Distance to the line through the projections of two points of the ray, found with no epipolar algebra."""
        ray = np.append((point - lenses[0][2:]) / lenses[0][:2], 1)
        (a, b), _ = project(pose, lenses[1], np.stack([2 * ray, 9 * ray]))
        along = (b - a) / np.linalg.norm(b - a)
        return abs(along[0] * (partner - a)[1] - along[1] * (partner - a)[0])

    there = [plain(relative, LENSES, a, b) for a, b in zip(first, second, strict=True)]
    back = [plain(np.linalg.inv(relative), LENSES[::-1], b, a) for a, b in zip(first, second, strict=True)]
    expected = np.sqrt((np.square(there) + np.square(back)) / 2)
    fundamental = epipolar.fundamental_matrix(pair_of(relative))
    np.testing.assert_allclose(epipolar.symmetric_epipolar_distance(fundamental, first, second), expected, rtol=1e-6)


@pytest.mark.parametrize("position", [[0.5, 0, 0], [0, 0, 0.8], [0.1, 0.2, -0.8], [0, 0, 0]])
@pytest.mark.parametrize("turn", [[0, 0, 0], [20, 5, -3], [170, 0, 0], [80, 0, 0]])
def test_distance_in_front_is_that_of_the_nearest_projection_of_any_depth(position, turn):
    rng = np.random.default_rng(2)
    relative = pose(turn, position)
    first = rng.uniform(0, [480, 270], (20, 2))
    second = rng.uniform(0, [480, 270], (20, 2))
    inverse_depths = np.append(0, np.geomspace(1e-4, 1e5, 20_000))
    expected = []
    for point, partner in zip(first, second, strict=True):
        ray = np.append((point - LENSES[0][2:]) / LENSES[0][:2], 1)
        inside = relative[:3, :3] @ ray + inverse_depths[:, None] * relative[:3, 3]
        inside = inside[inside[:, 2] > 0]
        pixels = inside[:, :2] / inside[:, 2:] * LENSES[1][:2] + LENSES[1][2:]
        expected.append(np.linalg.norm(pixels - partner, axis=1).min(initial=np.inf))
    found = epipolar.distance_in_front(pair_of(relative), first, second)
    np.testing.assert_allclose(found, expected, atol=0.05, rtol=1e-3)


def test_cameras_with_all_axes_reversed_have_the_same_lines_and_nothing_in_front(seen):
    relative, first, second, _ = seen
    reversed_axes = OPPOSITE @ relative @ OPPOSITE
    fundamental = epipolar.fundamental_matrix(pair_of(reversed_axes))
    assert epipolar.symmetric_epipolar_distance(fundamental, first, second).max() < 1e-9
    assert np.median(epipolar.symmetric_distance_in_front(pair_of(reversed_axes), first, second)) > 5
    assert (epipolar.triangulated_depths(pair_of(reversed_axes), first, second) < 0).all()


def test_triangulation_finds_the_depths(seen):
    relative, first, second, depths = seen
    np.testing.assert_allclose(epipolar.triangulated_depths(pair_of(relative), first, second), depths, rtol=1e-9)


def test_cameras_in_one_place_have_no_lines_but_one_pixel_for_each_point(seen):
    _, first, _, _ = seen
    relative = pose([10, 0, 0], [0, 0, 0])
    ray = epipolar.rays_of(first, LENSES[0])
    second, _ = project(relative, LENSES[1], ray)
    shifted = second + np.array([3, 4])
    assert epipolar.symmetric_distance_in_front(pair_of(relative), first, second).max() < 1e-9
    np.testing.assert_allclose(epipolar.distance_in_front(pair_of(relative), first, shifted), 5)
    fundamental = epipolar.fundamental_matrix(pair_of(relative))
    assert np.isnan(epipolar.symmetric_epipolar_distance(fundamental, first, second)).all()


def test_points_in_front_end_where_the_projections_do(seen):
    relative, first, second, _ = seen
    for point, partner in zip(first, second, strict=True):
        line = epipolar.points_in_front(pair_of(relative), point)
        gaps = np.linalg.norm(np.diff(line, axis=0), axis=1)
        nearest = np.linalg.norm(line - partner, axis=1).min()
        assert nearest <= gaps.max()
        distances = epipolar.distance_in_front(pair_of(relative), np.tile(point, (len(line), 1)), line)
        assert distances.max() < 1e-6
