"""Pose normalisation: a frame and a scale of a sample's own."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from geometry.cameras import orient

# What sets a sample's frame and scale, by the names of a configuration; `data.dataset.DataConfig` explains them.
PoseNormalization = Literal["all_views", "input_views", "median", "none"]

# Camera centres closer together than this share of their distance to the origin count as one point.
_SAME_PLACE = 1e-6


def mean_camera(c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "4 4"]:
    """The average camera: mean centre, mean z axis as forward, mean y axis (made orthogonal) as down.

    Where the axes cancel out or coincide (cameras facing one another), the first camera's axes stand in.
    """
    forward = c2w[:, :3, 2].mean(0)
    down = c2w[:, :3, 1].mean(0)
    if np.linalg.norm(np.cross(down, forward)) < 1e-6:
        forward = c2w[0, :3, 2]
        down = c2w[0, :3, 1]
    mean = np.eye(4)
    mean[:3, :3] = orient(forward, down)
    mean[:3, 3] = c2w[:, :3, 3].mean(0)
    return mean


@dataclass(frozen=True)
class Normalization:
    """A change of the world's frame and scale: `to_frame` moves a camera, then its position is divided by `scale`."""

    to_frame: Float[np.ndarray, "4 4"]
    scale: float

    def __call__(self, c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "v 4 4"]:
        """The same cameras in the new frame."""
        normalized = self.to_frame @ c2w
        normalized[:, :3, 3] /= self.scale
        return normalized

    def inverse(self, normalized: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "v 4 4"]:
        """Cameras of the new frame in the old one."""
        c2w = normalized.copy()
        c2w[:, :3, 3] *= self.scale
        return np.linalg.inv(self.to_frame) @ c2w


def pose_normalization(reference: Float[np.ndarray, "r 4 4"], scene_scale_factor: float) -> Normalization:
    """The change of frame that puts the mean camera of `reference` at the origin and fits positions into a box.

    Args:
        reference: the cameras that set frame and scale: all views of a sample, as the published weights were
            trained, or the input views where a render must not depend on the other targets.
        scene_scale_factor: the largest position component of the reference becomes 1 / this.

    Cameras that all stand in one place keep their positions at (nearly) zero: there is no scale to divide by.
    """
    to_mean = np.linalg.inv(mean_camera(reference))
    extent = np.abs((to_mean @ reference)[:, :3, 3]).max()
    spread = _is_spread(extent, np.abs(reference[:, :3, 3]).max())
    return Normalization(to_mean, float(scene_scale_factor * extent) if spread else 1.0)


def median_normalization(reference: Float[np.ndarray, "r 4 4"], scene_scale_factor: float) -> Normalization:
    """A change of frame whose origin and scale hardly depend on one camera that stands far from all others.

    With R the axes of the mean camera and p_i = Rᵀ t_i the positions along them, the origin is R c, where c_k is the
    median of the p_ik for each axis k. Positions are divided by scene_scale_factor · median_i ‖p_i − c‖₂.

    Args:
        reference: the cameras that set frame and scale.
        scene_scale_factor: the median distance of the reference from the origin becomes 1 / this.

    Where half of the cameras stand in one place, so that the median distance is (nearly) zero, the largest distance
    takes its place. Cameras that all stand in one place keep their positions at (nearly) zero.
    """
    frame = mean_camera(reference)
    positions = reference[:, :3, 3] @ frame[:3, :3]
    centre = np.median(positions, axis=0)
    frame[:3, 3] = frame[:3, :3] @ centre
    distances = np.linalg.norm(positions - centre, axis=1)
    away = float(np.median(np.abs(reference[:, :3, 3]).max(1)))
    candidates = (float(np.median(distances)), float(distances.max()))
    extent = next((extent for extent in candidates if _is_spread(extent, away)), None)
    return Normalization(np.linalg.inv(frame), scene_scale_factor * extent if extent else 1.0)


def no_normalization(scale: float = 1.0) -> Normalization:
    """What leaves cameras as they are, but for their positions, which are multiplied by `scale`."""
    return Normalization(np.eye(4), 1 / scale)


def _is_spread(extent: float, away: float) -> bool:
    """Whether cameras that reach as far as `extent` stand in more than one place, `away` from the world's origin."""
    return bool(extent > _SAME_PLACE * (1e-6 + away))
