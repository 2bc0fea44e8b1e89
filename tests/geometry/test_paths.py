from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geometry.normalization import mean_camera
from geometry.paths import (
    VideoConfig,
    camera_path,
    interpolate_path,
    nearest_order,
    spiral_path,
    through_path,
    wobble_path,
)
from tests.helpers import random_cameras

seeds = st.integers(0, 2**32 - 1)


def centres(cameras):
    return cameras.c2w[..., :3, 3].double().numpy()


def axes(cameras, axis):
    return cameras.c2w[..., :3, axis].double().numpy()


def video(kind, **options):
    return VideoConfig(kind, cameras_path="saved.json" if kind == "through" else "", **options)


@pytest.mark.parametrize("kind", ["interpolate", "spiral", "wobble", "orbit", "through"])
@given(seed=seeds, count=st.integers(1, 4), num_frames=st.integers(2, 9), order=st.booleans(), loop=st.booleans())
def test_every_pose_is_a_camera_of_the_same_image(kind, seed, count, num_frames, order, loop):
    inputs = random_cameras(count, seed=seed)
    path = camera_path(video(kind, num_frames=num_frames, order_poses=order, loop_video=loop), inputs, inputs)
    rotations = path.c2w[:, :3, :3].double()
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations), atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotations) > 0).all()
    assert (path.c2w[:, 3] == torch.tensor([0.0, 0, 0, 1])).all()
    legs = max(1, count - 1 + loop)
    assert (
        len(path.c2w)
        == num_frames * {"interpolate": legs, "spiral": 2, "wobble": count, "orbit": 1, "through": 1}[kind]
    )
    assert (path.height, path.width, path.c2w.dtype) == (inputs.height, inputs.width, inputs.c2w.dtype)
    assert (path.fxfycxcy >= inputs.fxfycxcy.amin(0) - 1e-4).all()
    assert (path.fxfycxcy <= inputs.fxfycxcy.amax(0) + 1e-4).all()


@pytest.mark.parametrize("kind", ["interpolate", "through"])
def test_loops_close_and_open_paths_end_at_the_last_camera(kind):
    inputs = random_cameras(3)
    for loop, last in ((True, 0), (False, 2)):
        path = camera_path(video(kind, num_frames=5, loop_video=loop), inputs, inputs)
        for pose, camera in ((0, 0), (-1, last)):
            torch.testing.assert_close(path.c2w[pose], inputs.c2w[camera], atol=1e-6, rtol=0)
            torch.testing.assert_close(path.fxfycxcy[pose], inputs.fxfycxcy[camera])


def test_path_legs_include_both_ends_and_close_the_loop():
    cameras = random_cameras(3)
    path = interpolate_path(cameras, 5)
    assert path.shape == (15,)
    for pose, camera in [(0, 0), (4, 1), (5, 1), (9, 2), (10, 2), (14, 0)]:
        torch.testing.assert_close(path.c2w[pose], cameras.c2w[camera], atol=1e-6, rtol=0)
        torch.testing.assert_close(path.fxfycxcy[pose], cameras.fxfycxcy[camera])
    assert interpolate_path(cameras, 5, loop=False).shape == (10,)
    assert interpolate_path(cameras[:1], 4, loop=False).shape == (4,)


def test_path_moves_evenly_and_turns_the_short_way():
    cameras = random_cameras(2)
    path = interpolate_path(cameras, 9, loop=False)
    steps = (path.c2w[1:, :3, 3] - path.c2w[:-1, :3, 3]).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(8), atol=1e-6, rtol=0)
    turns = Rotation.from_matrix(path.c2w[:, :3, :3].numpy())
    whole = (turns[0].inv() * turns[-1]).magnitude()
    np.testing.assert_allclose((turns[:-1].inv() * turns[1:]).magnitude(), whole / 8, atol=1e-5)


def test_nearest_order_visits_the_closest_camera_next():
    centres = np.array([[0.0, 0, 0], [5, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert nearest_order(centres) == [0, 2, 3, 1]


def test_ordered_paths_start_at_the_first_camera_and_go_to_the_nearest():
    inputs = random_cameras(4)
    order = nearest_order(centres(inputs))
    assert order != [0, 1, 2, 3]
    stops = interpolate_path(inputs, 2, loop=False, order=True).c2w[[0, 2, 4, 5]]
    torch.testing.assert_close(stops, inputs.c2w[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(through_path(inputs, 4, loop=False, order=True).c2w, stops)
    circles = wobble_path(inputs, 9, order=True).fxfycxcy[::9]
    torch.testing.assert_close(circles, inputs.fxfycxcy[order])


def test_as_many_poses_as_saved_cameras_are_these():
    saved = random_cameras(7)
    path = through_path(saved, 7, loop=False)
    torch.testing.assert_close(path.c2w, saved.c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(path.fxfycxcy, saved.fxfycxcy)


def test_a_looped_path_through_saved_cameras_comes_back_as_it_went():
    path = through_path(random_cameras(4), 13, loop=True)
    torch.testing.assert_close(path.c2w.flip(0), path.c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(path.c2w[[0, 2, 4, 6]], random_cameras(4).c2w, atol=1e-6, rtol=0)


@given(seeds, st.integers(1, 4))
def test_a_spiral_is_symmetric_around_the_mean_view(seed, count):
    inputs = random_cameras(count, seed=seed)
    path = spiral_path(inputs, 12)
    torch.testing.assert_close(path.c2w[0], path.c2w[-1], atol=1e-6, rtol=0)
    mean = mean_camera(inputs.c2w.double().numpy())
    local = (centres(path) - mean[:3, 3]) @ mean[:3, :3]
    np.testing.assert_allclose(local[:-1].mean(0), 0, atol=1e-5)
    # Half a turn around the horizontal axis of the mean view is the same spiral run backwards.
    np.testing.assert_allclose(local[::-1], local * [1, -1, -1], atol=1e-5)
    torch.testing.assert_close(path.fxfycxcy, inputs.fxfycxcy.mean(0).expand_as(path.fxfycxcy))


def meeting_point(path):
    """The point nearest to all optical axes, and its largest distance to one of them."""
    origins, forward = centres(path), axes(path, 2)
    off_axis = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    point = np.linalg.solve(off_axis.sum(0), (off_axis @ origins[:, :, None]).sum(0))[:, 0]
    return point, np.linalg.norm(off_axis @ (point - origins)[:, :, None], axis=(1, 2)).max()


@given(seeds, st.integers(1, 4))
def test_spirals_and_circles_look_at_one_point_of_the_scene(seed, count):
    inputs = random_cameras(count, seed=seed)
    spread = np.linalg.norm(centres(inputs) - centres(inputs).mean(0), axis=1).max()
    wobbles = wobble_path(inputs, 10)
    circles = [(wobbles[i * 10 : (i + 1) * 10], inputs.c2w[i].double().numpy()) for i in range(count)]
    for path, around in [(spiral_path(inputs, 10), mean_camera(inputs.c2w.double().numpy())), *circles]:
        point, miss = meeting_point(path)
        local = (point - around[:3, 3]) @ around[:3, :3]
        np.testing.assert_allclose(local, [0, 0, 4 * max(spread, 0.2)], atol=1e-3)
        assert miss < 1e-3
        assert (axes(path, 2) @ around[:3, 2] > 0.98).all()
        assert (axes(path, 1) @ around[:3, 1] > 0.98).all()


@given(seeds)
def test_a_wobble_is_a_closed_circle_around_every_camera(seed):
    inputs = random_cameras(3, seed=seed)
    path = wobble_path(inputs, 8)
    extent = np.linalg.norm(centres(inputs) - centres(inputs).mean(0), axis=1).max()
    for i in range(3):
        circle, camera = path[8 * i : 8 * i + 8], inputs.c2w[i].double().numpy()
        torch.testing.assert_close(circle.c2w[0], circle.c2w[-1], atol=1e-6, rtol=0)
        local = (centres(circle) - camera[:3, 3]) @ camera[:3, :3]
        np.testing.assert_allclose(np.linalg.norm(local, axis=1), 0.15 * max(extent, 0.2), atol=1e-5)
        np.testing.assert_allclose(local[:, 2], 0, atol=1e-5)
        np.testing.assert_allclose(local[:-1].mean(0), 0, atol=1e-5)
        torch.testing.assert_close(circle.fxfycxcy, inputs.fxfycxcy[i].expand(8, 4))


@given(seeds, st.floats(1.0, 50.0))
def test_circles_grow_with_the_inputs(seed, scale):
    inputs = random_cameras(3, seed=seed)
    c2w = inputs.c2w.clone()
    c2w[:, :3, 3] *= scale
    larger = replace(inputs, c2w=c2w)
    for make in (spiral_path, wobble_path):
        if np.linalg.norm(centres(inputs) - centres(inputs).mean(0), axis=1).max() > 0.2:
            np.testing.assert_allclose(centres(make(larger, 6)), scale * centres(make(inputs, 6)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [spiral_path, wobble_path])
@pytest.mark.parametrize("count", [1, 3])
def test_circles_around_inputs_in_one_place_can_be_seen(make, count):
    inputs = random_cameras(1)[[0] * count]
    path = make(inputs, 9)
    distances = np.linalg.norm(centres(path) - centres(inputs)[0], axis=1)
    assert (distances > 0.02).all() and (distances < 0.1).all()
    assert path.c2w.isfinite().all()
