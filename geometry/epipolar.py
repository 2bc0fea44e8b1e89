"""Epipolar geometry of two cameras.

Where a point that one image shows can appear in the other. Formulas are those of Hartley and Zisserman, Multiple View
Geometry in Computer Vision (2nd edition, 2004). A relative pose [4, 4] takes points from the first camera's frame to
the second's (OpenCV axes); points are in pixels, the centre of the first pixel being (0.5, 0.5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "m 2"]


@dataclass(frozen=True)
class CameraPair:
    """Two cameras: from the first one's frame to the second's, and fxfycxcy of both."""

    relative: Float[np.ndarray, "4 4"]
    first: Float[np.ndarray, "4"]
    second: Float[np.ndarray, "4"]

    def swapped(self) -> "CameraPair":
        """The second camera first."""
        return CameraPair(np.linalg.inv(self.relative), self.second, self.first)


def relative_pose(first: Float[np.ndarray, "4 4"], second: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """From the first camera's frame to the second's, given both w2c."""
    return second @ np.linalg.inv(first)


def intrinsic_matrix(fxfycxcy: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """K, from camera coordinates to homogeneous pixels (6.1)."""
    fx, fy, cx, cy = fxfycxcy
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def essential_matrix(relative: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 3"]:
    """E = [t]x R (9.12); zero for cameras in one place."""
    x, y, z = relative[:3, 3]
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]


def fundamental_matrix(cameras: CameraPair) -> Float[np.ndarray, "3 3"]:
    """F = K'^-T E K^-1 (9.12): second^T F first = 0 for homogeneous pixels of one point."""
    from_pixels = np.linalg.inv(intrinsic_matrix(cameras.first))
    to_lines = np.linalg.inv(intrinsic_matrix(cameras.second)).T
    return to_lines @ essential_matrix(cameras.relative) @ from_pixels


def symmetric_epipolar_distance(
    fundamental: Float[np.ndarray, "3 3"], first: Points, second: Points
) -> Float[np.ndarray, "m"]:
    """Distances of points to the epipolar lines of their partners, in pixels: both images' root mean square (11.10).

    NaN where there is no line: for cameras in one place, or at an epipole.
    """
    ours = _homogeneous(first)
    theirs = _homogeneous(second)
    lines = ours @ fundamental.T
    back = theirs @ fundamental
    residual = (theirs * lines).sum(1)
    with np.errstate(all="ignore"):
        squares = residual**2 / (lines[:, :2] ** 2).sum(1) + residual**2 / (back[:, :2] ** 2).sum(1)
    return np.sqrt(squares / 2)


def symmetric_distance_in_front(cameras: CameraPair, first: Points, second: Points) -> Float[np.ndarray, "m"]:
    """As `symmetric_epipolar_distance`, but to the part of a line that points in front of both cameras project to.

    A pose whose baseline points the wrong way has the same lines, and large distances here. Cameras in one place have
    no lines; the distance is then to the one pixel where the point must appear. Infinite where it cannot appear at all.
    """
    there = distance_in_front(cameras, first, second)
    back = distance_in_front(cameras.swapped(), second, first)
    return np.sqrt((there**2 + back**2) / 2)


def distance_in_front(cameras: CameraPair, first: Points, second: Points) -> Float[np.ndarray, "m"]:
    """How far `second` is from where the point seen at `first` can appear, in pixels.

    At inverse depth r >= 0 the point appears at K'(R x + r t), x being K^-1 `first` (9.7); that must be in front of the
    second camera. Infinite where no such r exists.
    """
    to_pixels = intrinsic_matrix(cameras.second)
    infinite = rays_of(first, cameras.first) @ (to_pixels @ cameras.relative[:3, :3]).T
    epipole = np.broadcast_to(to_pixels @ cameras.relative[:3, 3], infinite.shape)
    foot = _foot(np.cross(infinite, epipole), second)
    at_ends = np.minimum(_distance_to(infinite, second), _distance_to(epipole, second))
    on_line = np.linalg.norm(foot - second, axis=1)
    return np.where(_is_in_front(infinite, epipole, foot), on_line, at_ends)


def points_in_front(cameras: CameraPair, first: Float[np.ndarray, "2"]) -> Float[np.ndarray, "k 2"]:
    """Pixels of the second image where the point seen at `first` can appear, from afar to near; for pictures."""
    baseline = max(float(np.linalg.norm(cameras.relative[:3, 3])), 1e-12)
    inverse_depths = np.geomspace(1e-4, 1e4, 800)[:, None] / baseline
    ray = rays_of(first[None], cameras.first) @ cameras.relative[:3, :3].T
    seen = (ray + inverse_depths * cameras.relative[:3, 3]) @ intrinsic_matrix(cameras.second).T
    seen = seen[seen[:, 2] > 0]
    return seen[:, :2] / seen[:, 2:]


def _foot(lines: Float[np.ndarray, "m 3"], points: Points) -> Points:
    """The point of a line that is nearest; NaN for no line."""
    normal = lines[:, :2]
    with np.errstate(all="ignore"):
        step = ((normal * points).sum(1) + lines[:, 2]) / (normal**2).sum(1)
        return points - step[:, None] * normal


def _is_in_front(
    infinite: Float[np.ndarray, "m 3"], epipole: Float[np.ndarray, "m 3"], foot: Points
) -> Bool[np.ndarray, "m"]:
    """Whether a point of the line has an inverse depth of 0 or more in the first camera, and is before the second."""
    start = infinite[:, :2] - foot * infinite[:, 2:]
    slope = epipole[:, :2] - foot * epipole[:, 2:]
    with np.errstate(all="ignore"):
        inverse_depth = -(start * slope).sum(1) / (slope**2).sum(1)
        return (inverse_depth >= 0) & (infinite[:, 2] + inverse_depth * epipole[:, 2] > 0)


def _distance_to(homogeneous: Float[np.ndarray, "m 3"], points: Points) -> Float[np.ndarray, "m"]:
    """Distance to where a point in front of the camera projects to; infinite for one behind."""
    depth = homogeneous[:, 2]
    with np.errstate(all="ignore"):
        distance = np.linalg.norm(homogeneous[:, :2] / depth[:, None] - points, axis=1)
    return np.where(depth > 0, distance, np.inf)


def triangulated_depths(cameras: CameraPair, first: Points, second: Points) -> Float[np.ndarray, "m 2"]:
    """Depths z of points in both cameras, where their rays pass closest: least squares of d' x' = d R x + t.

    Not finite, or huge, where the rays are parallel.
    """
    ours = rays_of(first, cameras.first) @ cameras.relative[:3, :3].T
    theirs = rays_of(second, cameras.second)
    baseline = cameras.relative[:3, 3]
    along = -ours @ baseline
    across = theirs @ baseline
    mixed = (ours * theirs).sum(1)
    our_square = (ours**2).sum(1)
    their_square = (theirs**2).sum(1)
    with np.errstate(all="ignore"):
        determinant = our_square * their_square - mixed**2
        depth = (along * their_square + mixed * across) / determinant
        other = (our_square * across + mixed * along) / determinant
    return np.stack([depth, other], axis=1)


def rays_of(points: Points, fxfycxcy: Float[np.ndarray, "4"]) -> Float[np.ndarray, "m 3"]:
    """Directions of pixels in their camera's frame, at depth 1."""
    return _homogeneous((points - fxfycxcy[2:]) / fxfycxcy[:2])


def _homogeneous(points: Points) -> Float[np.ndarray, "m 3"]:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)
