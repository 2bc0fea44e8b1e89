"""Cameras that stand around something and look at it: what they look at, which way is up, circles around it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from geometry.cameras import orient

# How far an optical axis may pass by what the cameras look at, in degrees seen from its camera.
_MISS = 5.0
# Cameras stand around a thing if two of them see it from directions that are so many degrees apart; those of one who
# walks and turns often meet in one point, too, ahead of them all.
_APART = 60.0
# Circles keep so many degrees away from the poles, where no camera is upright.
_HIGHEST = 85.0
# How much more the cameras' horizontal axes must spread within a plane than out of it, to say which way is up.
_FLAT = 0.25
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Orbit:
    """A centre that cameras look at, and the unit vector of what is up to them."""

    centre: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]

    def ahead(self, camera: Float[np.ndarray, "4 4"]) -> float:
        """How far along the optical axis of a camera (c2w) the centre is; negative behind it."""
        return float((self.centre - camera[:3, 3]) @ camera[:3, 2])

    def circle(self, start: Float[np.ndarray, "3"], radius: float, elevation: float, count: int) -> np.ndarray:
        """c2w [count, 4, 4] of upright cameras that look at the centre, on a circle around the axis that is up.

        Args:
            start: the first camera stands on this side of the axis, and the last one is the first again.
            radius: distance to the centre.
            elevation: in radians above the plane through the centre.
        """
        turn = np.linspace(0.0, 2 * np.pi, count)[:, None]
        first = _across(start - self.centre, self.up)
        second = np.cross(self.up, first)
        around = np.cos(turn) * first + np.sin(turn) * second
        outwards = np.cos(elevation) * around + np.sin(elevation) * self.up
        c2w = np.tile(np.eye(4), (count, 1, 1))
        c2w[:, :3, :3] = orient(-outwards, np.broadcast_to(-self.up, outwards.shape))
        c2w[:, :3, 3] = self.centre + radius * outwards
        return c2w

    def mean_circle(self, c2w: Float[np.ndarray, "v 4 4"], count: int) -> Float[np.ndarray, "count 4 4"]:
        """The circle at the cameras' mean distance and elevation that begins beside the first of them."""
        offsets = c2w[:, :3, 3] - self.centre
        distances = np.linalg.norm(offsets, axis=1)
        elevations = np.arcsin(np.clip(offsets @ self.up / np.maximum(distances, 1e-12), -1, 1))
        highest = np.radians(_HIGHEST)
        elevation = float(np.clip(elevations.mean(), -highest, highest))
        return self.circle(c2w[0, :3, 3], float(distances.mean()), elevation, count)


def orbit_around(c2w: Float[np.ndarray, "v 4 4"], depth: float) -> Orbit:
    """The orbit of cameras: about the point that is nearest to all their optical axes.

    Args:
        depth: how far ahead of the mean camera the centre is taken to be where the axes say nothing, being parallel
            or meeting behind the cameras.
    """
    centre = nearest_to_axes(c2w)
    if centre is None or np.any(np.sum((centre - c2w[:, :3, 3]) * c2w[:, :3, 2], axis=1) <= 0):
        centre = c2w[:, :3, 3].mean(0) + depth * _unit(c2w[:, :3, 2].mean(0))
    return Orbit(centre, upwards(c2w))


def find_orbit(c2w: Float[np.ndarray, "v 4 4"]) -> Orbit | None:
    """The orbit of cameras that stand around one thing and all look at it; None for cameras of another kind."""
    centre = nearest_to_axes(c2w)
    if centre is None:
        return None
    ways = centre - c2w[:, :3, 3]
    seen = _unit(ways)
    cosines = np.sum(seen * c2w[:, :3, 2], axis=1)
    apart = (seen @ seen.T).min()
    if cosines.min() < np.cos(np.radians(_MISS)) or apart > np.cos(np.radians(_APART)):
        return None
    return Orbit(centre, upwards(c2w))


def nearest_to_axes(c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "3"] | None:
    """The point p with the least sum of squared distances to the optical axes: sum (I - d dᵀ)(p - o) = 0.

    None for axes that are parallel, or one alone.
    """
    origin = c2w[:, :3, 3]
    across = np.eye(3) - c2w[:, :3, None, 2] * c2w[:, None, :3, 2]
    total = across.sum(0)
    if np.linalg.eigvalsh(total)[0] < 1e-6 * len(c2w):
        return None
    return np.linalg.solve(total, np.einsum("vij,vj->i", across, origin))


def upwards(c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "3"]:
    """Up for cameras: perpendicular to their x axes, which are level in cameras that do not roll.

    Where these spread in no plane, up is against the mean of the y axes.
    """
    mean = -c2w[:, :3, 1].mean(0)
    right = c2w[:, :3, 0]
    spread, axes = np.linalg.eigh(right.T @ right)
    is_plane = spread[0] < _FLAT * spread[1] and spread[1] > _LEAST_SPREAD * len(c2w)
    if is_plane and abs(axes[:, 0] @ mean) > 1e-6:
        return axes[:, 0] * np.sign(axes[:, 0] @ mean)
    return _unit(mean) if np.linalg.norm(mean) > 1e-6 else -c2w[0, :3, 1]


def _across(vector: Float[np.ndarray, "3"], axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The unit vector of what is perpendicular to an axis; any such where there is nothing."""
    part = vector - (vector @ axis) * axis
    if np.linalg.norm(part) < 1e-6 * max(1.0, float(np.linalg.norm(vector))):
        part = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    return _unit(part)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
