import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from geometry.cameras import plucker, rays
from geometry.normalization import mean_camera, median_normalization, no_normalization, pose_normalization
from tests.helpers import random_cameras

seeds = st.integers(0, 2**32 - 1)


def poses(seed, count=4, spread=0.6):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = Rotation.from_rotvec(rng.uniform(-spread, spread, (count, 3))).as_matrix()
    c2w[:, :3, 3] = rng.normal(size=(count, 3))
    return c2w


def normalized(c2w, reference=None):
    return pose_normalization(c2w if reference is None else reference, 1.35)(c2w)


def test_rays_follow_the_formula_pixel_by_pixel():
    cameras = random_cameras(2)
    origins, directions = rays(cameras)
    for i, (x, y) in [(0, (0, 0)), (1, (23, 15)), (0, (7, 3))]:
        fx, fy, cx, cy = cameras.fxfycxcy[i].tolist()
        local = torch.tensor([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1.0])
        world = cameras.c2w[i, :3, :3] @ local
        torch.testing.assert_close(directions[i, y, x], world / world.norm())
        torch.testing.assert_close(origins[i], cameras.c2w[i, :3, 3])


@given(seeds)
def test_directions_have_unit_length_and_moments_are_orthogonal(seed):
    cameras = random_cameras(3, seed=seed)
    moment, direction = plucker(cameras).split(3, dim=1)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(3, 16, 24))
    assert (moment * direction).sum(1).abs().max() < 1e-5


@given(seeds, st.floats(-3, 3))
def test_plucker_does_not_change_when_the_origin_slides_along_the_ray(seed, distance):
    cameras = random_cameras(1, seed=seed)
    y, x = 5, 9
    direction = plucker(cameras)[0, 3:, y, x]
    moved = cameras.c2w.clone()
    moved[0, :3, 3] += distance * direction
    slid = type(cameras)(moved, cameras.fxfycxcy, cameras.height, cameras.width)
    torch.testing.assert_close(plucker(slid)[0, :, y, x], plucker(cameras)[0, :, y, x], atol=2e-6, rtol=1e-5)


def test_plucker_is_moment_first():
    cameras = random_cameras(1)
    origins, directions = rays(cameras)
    expected = torch.linalg.cross(origins[0], directions[0, 2, 4])
    torch.testing.assert_close(plucker(cameras)[0, :3, 2, 4], expected)


def test_rays_keep_full_precision_inside_autocast():
    cameras = random_cameras(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plucker(cameras)
    assert torch.equal(inside, plucker(cameras))


def test_mean_camera_by_the_plain_formula():
    c2w = poses(3)
    forward = c2w[:, :3, 2].mean(0)
    forward /= np.linalg.norm(forward)
    right = np.cross(c2w[:, :3, 1].mean(0), forward)
    right /= np.linalg.norm(right)
    mean = mean_camera(c2w)
    np.testing.assert_allclose(mean[:3, 2], forward)
    np.testing.assert_allclose(mean[:3, 0], right)
    np.testing.assert_allclose(mean[:3, 3], c2w[:, :3, 3].mean(0))
    np.testing.assert_allclose(mean[:3, :3].T @ mean[:3, :3], np.eye(3), atol=1e-12)
    assert np.linalg.det(mean[:3, :3]) > 0


@given(seeds)
def test_normalised_positions_just_fit(seed):
    fitted = normalized(poses(seed))
    np.testing.assert_allclose(np.abs(fitted[:, :3, 3]).max(), 1 / 1.35)
    np.testing.assert_allclose(mean_camera(fitted), np.eye(4), atol=1e-9)


def middle(values):
    """The median by sorting."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_median_normalisation_by_the_plain_formula(count):
    c2w = poses(count, count)
    axes = mean_camera(c2w)[:3, :3]
    along = [[float(axes[:, axis] @ pose[:3, 3]) for axis in range(3)] for pose in c2w]
    centre = [middle(position[axis] for position in along) for axis in range(3)]
    distances = [math.dist(position, centre) for position in along]
    scale = 1.35 * middle(distances) if count > 1 else 1.0
    moved = median_normalization(c2w, 1.35)(c2w)
    np.testing.assert_allclose(moved[:, :3, 3], (np.array(along) - centre) / scale, atol=1e-12)
    np.testing.assert_allclose(moved[:, :3, :3], axes.T @ c2w[:, :3, :3], atol=1e-12)


def test_one_far_camera_shrinks_the_others_by_their_largest_distance_and_not_by_the_median():
    near = poses(4, 7)
    far = near.copy()
    near[6, :3, 3] = [8.0, 7.0, -9.0]
    far[6, :3, 3] = [8e4, 7e4, -9e4]
    moved = median_normalization(far, 1.35)(far)
    np.testing.assert_allclose(moved[:6], median_normalization(near, 1.35)(near)[:6], atol=1e-9)
    assert 0.5 < np.median(np.linalg.norm(moved[:6, :3, 3], axis=1)) < 1
    assert np.linalg.norm(np.diff(normalized(far)[:6, :3, 3], axis=0), axis=1).max() < 1e-3


@pytest.mark.parametrize("count", [4, 5])
def test_where_half_of_the_cameras_stand_in_one_place_the_farthest_sets_the_scale(count):
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, 3] = [100.0, -3.0, 20.0]
    c2w[-1, :3, 3] += [0.0, 3.0, 4.0]
    moved = median_normalization(c2w, 2.0)(c2w)
    np.testing.assert_allclose(moved[:-1, :3, 3], 0, atol=1e-12)
    np.testing.assert_allclose(moved[-1, :3, 3], [0.0, 0.3, 0.4])


@pytest.mark.parametrize("normalization", [pose_normalization(poses(1), 1.35), median_normalization(poses(2), 1.35)])
def test_cameras_come_back_from_a_normalised_frame(normalization):
    c2w = poses(3)
    assert np.abs(normalization(c2w) - c2w).max() > 0.1
    np.testing.assert_allclose(normalization.inverse(normalization(c2w)), c2w, atol=1e-12)


def test_without_normalisation_cameras_are_as_they_are():
    c2w = poses(3)
    np.testing.assert_array_equal(no_normalization()(c2w), c2w)
    np.testing.assert_array_equal(no_normalization().inverse(c2w), c2w)


def test_a_fixed_scale_moves_cameras_towards_the_origin_alone():
    c2w = poses(3)
    scaled = no_normalization(0.25)(c2w)
    np.testing.assert_array_equal(scaled[:, :3, 3], 0.25 * c2w[:, :3, 3])
    np.testing.assert_array_equal(scaled[:, :3, :3], c2w[:, :3, :3])
    np.testing.assert_allclose(no_normalization(0.25).inverse(scaled), c2w, atol=1e-12)


@pytest.mark.parametrize("normalization", [pose_normalization, median_normalization])
@given(seeds, seeds, st.floats(0.01, 100), arrays(float, 3, elements=st.floats(-50, 50)))
def test_normalisation_ignores_a_similarity_of_the_world(normalization, seed, turn, scale, shift):
    c2w = poses(seed)
    rotation = Rotation.random(random_state=turn % 2**31).as_matrix()
    moved = c2w.copy()
    moved[:, :3, :3] = rotation @ c2w[:, :3, :3]
    moved[:, :3, 3] = scale * c2w[:, :3, 3] @ rotation.T + shift
    expected = normalization(c2w, 1.35)(c2w)
    np.testing.assert_allclose(normalization(moved, 1.35)(moved), expected, atol=1e-7)


def test_normalisation_by_inputs_does_not_see_the_targets():
    c2w = poses(5)
    other = c2w.copy()
    other[2:] = poses(6)[2:]
    by_inputs = [normalized(p, p[:2])[:2] for p in (c2w, other)]
    np.testing.assert_array_equal(*by_inputs)
    by_all = [normalized(p)[:2] for p in (c2w, other)]
    assert np.abs(by_all[0] - by_all[1]).max() > 1e-3


@pytest.mark.parametrize("normalization", [pose_normalization, median_normalization])
def test_identical_cameras_stay_at_the_origin(normalization):
    c2w = np.repeat(poses(1)[:1] + 0.0, 5, axis=0)
    c2w[:, :3, 3] = [100.0, -3.0, 20.0]
    moved = normalization(c2w, 1.35)(c2w)
    assert np.isfinite(moved).all()
    assert np.abs(moved[:, :3, 3]).max() < 1e-4


def test_cameras_that_face_one_another_have_a_mean():
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[1, :3, :3] = Rotation.from_euler("y", 180, degrees=True).as_matrix()
    c2w[1, 2, 3] = 2.0
    moved = normalized(c2w)
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(np.abs(moved[:, :3, 3]).max(), 1 / 1.35)


@pytest.mark.parametrize("turns", [[0], [0, 180], [0, 90, 180, 270], [0, 0, 180, 180], [0, 120, 240], [0, 179.9999999]])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("reach", [0.0, 1e-12, 1.0, 1e7])
def test_no_arrangement_of_cameras_gives_nan(turns, axis, reach):
    """Facing in, facing out, upside down, all in one place, and as far away as cameras may be."""
    c2w = np.tile(np.eye(4), (len(turns), 1, 1))
    c2w[:, :3, :3] = Rotation.from_euler(axis, np.array(turns)[:, None], degrees=True).as_matrix().reshape(-1, 3, 3)
    for sign in (-1, 1):
        c2w[:, :3, 3] = sign * reach * c2w[:, :3, 2]
        moved = normalized(c2w)
        assert np.isfinite(moved).all() and np.abs(moved[:, :3, 3]).max() <= 1 / 1.35 + 1e-9
        rotation = moved[:, :3, :3]
        assert np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-6
