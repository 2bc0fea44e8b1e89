"""Distorted images made into images of a pinhole camera: of the same size, without an empty pixel."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data.importers.lens import Four, Lens
from utils.errors import InputError

# Degrees; beyond it a pinhole image is stretched more than four times at its edge.
_WIDEST = 120.0
# Longer focal lengths than this many times the lens's own leave nothing of its image.
_LONGEST = 64.0
# Points along a side, and along a ray from the optical axis.
_POINTS = 257
_STEPS = 4096
_HALVINGS = 40
# Pixels by which a point may lie outside the image.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Undistortion:
    """How images of a lens become pinhole images of the same size.

    Attributes:
        lens: of the images as they are.
        fxfycxcy: of the pinhole images: the principal point stays, the focal lengths change by one factor.
        lost: the share of an image's area that lies outside them.
    """

    lens: Lens
    fxfycxcy: Four
    lost: float

    def pixels(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """The pinhole image, by Lanczos; of an image with alpha (4 channels) a colour counts as much as it is seen."""
        if image.shape[2] == 3:
            return self._resampled(image)
        weighted = image.astype(np.float32)
        weighted[..., :3] *= weighted[..., 3:] / 255
        weighted = self._resampled(weighted)
        weighted[..., :3] *= 255 / np.maximum(weighted[..., 3:], 1)
        return np.clip(np.round(weighted), 0, 255).astype(np.uint8)

    def _resampled(self, image: np.ndarray) -> np.ndarray:
        across, down = _maps(self)
        return cv2.remap(image, across, down, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=256)
def plan_undistortion(lens: Lens) -> Undistortion:
    """The pinhole camera with the widest view whose every pixel a lens saw, of at most 120 degrees.

    Raises:
        InputError: there is none.
    """
    radius = _monotonic_radius(lens)
    low = _least_factor(lens)
    high = max(low, 1.0)
    while not _is_inside(lens, high, radius):
        high *= 2
        if high > _LONGEST:
            raise InputError(f"its distortion {lens.distortion} leaves no image to be used")
    if _is_inside(lens, low, radius):
        high = low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _is_inside(lens, middle, radius):
            high = middle
        else:
            low = middle
    fx, fy, cx, cy = lens.fxfycxcy
    return Undistortion(lens, (fx * high, fy * high, cx, cy), _lost(lens, high))


def distort(lens: Lens, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Where a lens shows the rays through points at depth 1, in pixels."""
    focal = np.array(lens.fxfycxcy[:2])
    centre = np.array(lens.fxfycxcy[2:])
    return _distorted(lens, points) * focal + centre


def _distorted(lens: Lens, points: np.ndarray) -> np.ndarray:
    """Where the rays arrive by OpenCV's formula, in focal lengths from the principal point."""
    radius = np.linalg.norm(points, axis=1)
    scale = np.divide(_bent(lens, radius), radius, out=np.ones_like(radius), where=radius > 0)[:, None]
    if lens.fisheye or not lens.distortion:
        return points * scale
    p1, p2 = lens.distortion[2:4]
    x, y = points.T
    square = radius**2
    shift = [2 * p1 * x * y + p2 * (square + 2 * x**2), p1 * (square + 2 * y**2) + 2 * p2 * x * y]
    return points * scale + np.stack(shift, axis=1)


def _bent(lens: Lens, radius: np.ndarray) -> np.ndarray:
    """How far from the axis a ray arrives that would without distortion arrive at `radius`."""
    if lens.fisheye:
        angle = np.arctan(radius)
        return angle * np.polynomial.polynomial.polyval(angle**2, [1.0, *lens.distortion])
    k1, k2, _, _, k3, k4, k5, k6 = lens.distortion or (0.0,) * 8
    square = radius**2
    above = np.polynomial.polynomial.polyval(square, [1.0, k1, k2, k3])
    return radius * above / np.polynomial.polynomial.polyval(square, [1.0, k4, k5, k6])


def _monotonic_radius(lens: Lens) -> float:
    """Up to where a ray farther from the axis arrives farther from it; beyond, formulas mean nothing."""
    corner = math.sqrt(2) * math.tan(math.radians(_WIDEST / 2))
    radius = np.linspace(0, corner, _STEPS)
    with np.errstate(all="ignore"):
        grows = np.diff(_bent(lens, radius)) > 0
    return corner if grows.all() else float(radius[grows.argmin()])


def _least_factor(lens: Lens) -> float:
    """The factor of the focal lengths at which the image reaches as far as is allowed."""
    farthest = math.tan(math.radians(_WIDEST / 2))
    fx, fy, cx, cy = lens.fxfycxcy
    width, height = lens.size
    return max(max(cx, width - cx) / fx, max(cy, height - cy) / fy) / farthest


def _edge(lens: Lens, factor: float) -> Float[np.ndarray, "n 2"]:
    """Points at depth 1 along the edge of the pinhole image, all around it."""
    width, height = lens.size
    fx, fy, cx, cy = lens.fxfycxcy
    share = np.linspace(0, 1, _POINTS)
    zero = np.zeros(_POINTS)
    across = np.concatenate([share, zero + 1, share[::-1], zero]) * width
    down = np.concatenate([zero, share, zero + 1, share[::-1]]) * height
    return np.stack([(across - cx) / (fx * factor), (down - cy) / (fy * factor)], axis=1)


def _is_inside(lens: Lens, factor: float, radius: float) -> bool:
    edge = _edge(lens, factor)
    if np.linalg.norm(edge, axis=1).max() > radius:
        return False
    seen = distort(lens, edge)
    return bool((seen >= -_TOLERANCE).all() and (seen <= np.array(lens.size) + _TOLERANCE).all())


def _lost(lens: Lens, factor: float) -> float:
    """By the shoelace formula for the area that the pinhole image covers."""
    x, y = distort(lens, _edge(lens, factor)).T
    covered = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return max(0.0, 1.0 - float(covered) / (lens.size[0] * lens.size[1]))


@lru_cache(maxsize=1)
def _maps(plan: Undistortion) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """For every pixel of the pinhole image its place in the distorted one. OpenCV counts from a pixel's centre."""
    before = _matrix(plan.lens.fxfycxcy)
    after = _matrix(plan.fxfycxcy)
    distortion = np.array(plan.lens.distortion)
    if plan.lens.fisheye:
        return cv2.fisheye.initUndistortRectifyMap(before, distortion, np.eye(3), after, plan.lens.size, cv2.CV_32FC1)
    return cv2.initUndistortRectifyMap(before, distortion, np.eye(3), after, plan.lens.size, cv2.CV_32FC1)


def _matrix(fxfycxcy: Four) -> Float[np.ndarray, "3 3"]:
    fx, fy, cx, cy = fxfycxcy
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
