"""PRoPE's matrices and angles against the paper's formulas in float64."""

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from geometry.relative import inverse_projections, patch_angles, projections, token_cameras
from tests.helpers import random_cameras


def plain_projection(c2w, fxfycxcy, height, width):
    """lift4(K) w2c, K in shares of the image around its centre."""
    fx, fy, cx, cy = fxfycxcy
    k = np.eye(4)
    k[:3, :3] = [[fx / width, 0, cx / width - 0.5], [0, fy / height, cy / height - 0.5], [0, 0, 1]]
    return k @ np.linalg.inv(c2w)


def test_projections_and_their_inverses():
    cameras = random_cameras(2, 3)
    found = projections(cameras).double().numpy()
    back = inverse_projections(cameras).double().numpy()
    for index in np.ndindex(2, 3):
        c2w, fxfycxcy = (t[index].double().numpy() for t in (cameras.c2w, cameras.fxfycxcy))
        expected = plain_projection(c2w, fxfycxcy, 16, 24)
        np.testing.assert_allclose(found[index], expected, atol=1e-6)
        np.testing.assert_allclose(back[index], np.linalg.inv(expected), atol=1e-5)


def test_they_are_of_float32_whatever_runs_around_them():
    cameras = random_cameras(1, 2)
    exact = projections(cameras)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projections(cameras), exact)
    double = Cameras(cameras.c2w.double(), cameras.fxfycxcy.double(), 16, 24)
    assert projections(double).dtype == inverse_projections(double).dtype == torch.float32


def test_angles_of_patches():
    found = patch_angles(rows=2, columns=3, angles=4)
    for token, (row, column) in enumerate(np.ndindex(2, 3)):
        for j in range(4):
            assert found[token, j].item() == pytest.approx(column * 100 ** (-j / 4), rel=1e-6)
            assert found[token, 4 + j].item() == pytest.approx(row * 100 ** (-j / 4), rel=1e-6)


def test_tokens_come_view_by_view_and_those_without_a_camera_are_left_alone():
    cameras = random_cameras(2, 3)
    found = token_cameras([5, cameras, 2], patch_size=4, d_head=16)
    n = 4 * 6
    assert found.projection.shape == (2, 5 + 3 * n + 2, 4, 4) and found.cos.shape == (5 + 3 * n + 2, 4)
    for some in (found[:5], found[-2:]):
        assert (some.projection == torch.eye(4)).all() and (some.inverse == torch.eye(4)).all()
        assert (some.cos == 1).all() and (some.sin == 0).all()
    angles = patch_angles(4, 6, 2)
    for view in range(3):
        some = found[5 + view * n : 5 + (view + 1) * n]
        assert (some.projection == projections(cameras)[:, view, None]).all()
        assert (some.inverse == inverse_projections(cameras)[:, view, None]).all()
        assert torch.equal(some.cos, angles.cos()) and torch.equal(some.sin, angles.sin())


def test_a_scene_serves_all_of_its_targets_in_a_row():
    inputs, targets = random_cameras(2, 3), random_cameras(6, 1, seed=1)
    found = token_cameras([inputs, targets], patch_size=4, d_head=16)
    for sequence in range(6):
        alone = token_cameras([inputs[sequence // 3, None], targets[sequence, None]], patch_size=4, d_head=16)
        assert torch.equal(found.projection[sequence], alone.projection[0])
        assert torch.equal(found.inverse[sequence], alone.inverse[0])
        assert torch.equal(found.cos, alone.cos) and torch.equal(found.sin, alone.sin)
