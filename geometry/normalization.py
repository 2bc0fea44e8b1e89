"""Pose normalisation: a frame and a scale of a sample's own."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from geometry.cameras import orient

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
    """A change of the world's frame and scale: `to_mean` moves a camera, then its position is divided by `scale`."""

    to_mean: Float[np.ndarray, "4 4"]
    scale: float

    def __call__(self, c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "v 4 4"]:
        """The same cameras in the new frame."""
        normalized = self.to_mean @ c2w
        normalized[:, :3, 3] /= self.scale
        return normalized

    def inverse(self, normalized: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "v 4 4"]:
        """Cameras of the new frame in the old one."""
        c2w = normalized.copy()
        c2w[:, :3, 3] *= self.scale
        return np.linalg.inv(self.to_mean) @ c2w


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
    spread = extent > _SAME_PLACE * (1e-6 + np.abs(reference[:, :3, 3]).max())
    return Normalization(to_mean, float(scene_scale_factor * extent) if spread else 1.0)
