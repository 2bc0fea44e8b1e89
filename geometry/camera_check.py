"""Implausible cameras: the one check of every camera that comes from a file."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

# How far entries of R Rᵀ may be from the identity: poses of real captures are rounded, some to few digits.
_ROTATION_TOLERANCE = 1e-2
# How far the last row may be from (0, 0, 0, 1): it is written, never computed.
_ROW_TOLERANCE = 1e-4
# Beyond every map's coordinates in metres (the Earth's radius is 6.4e6).
_MAX_TRANSLATION = 1e7
# Degrees, across the width and across the height; wider lenses are no pinhole cameras.
_MIN_FIELD_OF_VIEW = 5.0
_MAX_FIELD_OF_VIEW = 150.0
# fx / fy, or the other way round: images that were squeezed to a square have 1.8 to 2.4.
_MAX_FOCAL_RATIO = 4.0
# A principal point nearer to the corner than this, in pixels, is normalized: a fraction of width and height.
_LARGEST_NORMALIZED = 1.0

# Which frames hold [n], what is wrong with the others, and the figures [n, k] to be put into that.
_Check = tuple[Any, str, np.ndarray]


def camera_faults(
    fxfycxcy: Float[np.ndarray, "n 4"],
    w2c: Float[np.ndarray, "n 4 4"],
    sizes: Float[np.ndarray, "#n 2"] | None = None,
) -> dict[int, str]:
    """The frames whose cameras are implausible, and why.

    Args:
        fxfycxcy: intrinsics in pixels.
        w2c: world-to-camera matrices, OpenCV axes.
        sizes: width and height of the images in pixels; without them only what holds for any size is found.
    """
    faults: dict[int, str] = {}
    with np.errstate(all="ignore"):
        for good, reason, figures in [*_pose_checks(w2c), *_lens_checks(fxfycxcy, sizes)]:
            if good.all():
                continue
            for frame in np.flatnonzero(~good).tolist():
                faults.setdefault(frame, reason.format(*figures[frame].tolist()))
    return faults


def _pose_checks(w2c: Float[np.ndarray, "n 4 4"]) -> Iterator[_Check]:
    yield np.isfinite(w2c).all((1, 2)), "its pose is not finite", w2c[:, 3]
    row = w2c[:, 3]
    good = np.abs(row - [0, 0, 0, 1]).max(1) <= _ROW_TOLERANCE
    yield good, "the last row of its pose is ({:g}, {:g}, {:g}, {:g}), not (0, 0, 0, 1)", row
    rotation = w2c[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    yield error <= _ROTATION_TOLERANCE, "its pose scales or shears (R Rᵀ is off by {:g})", error[:, None]
    determinant = np.linalg.det(rotation)
    yield determinant > 0, "its pose is mirrored (determinant {:g})", determinant[:, None]
    distance = np.linalg.norm(w2c[:, :3, 3], axis=1)
    yield distance <= _MAX_TRANSLATION, f"its translation is {{:g}}, more than {_MAX_TRANSLATION:g}", distance[:, None]


def _lens_checks(fxfycxcy: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "#n 2"] | None) -> Iterator[_Check]:
    focal = fxfycxcy[:, :2]
    centre = fxfycxcy[:, 2:]
    yield np.isfinite(fxfycxcy).all(1), "its intrinsics are not finite", fxfycxcy
    yield (focal > 0).all(1), "its focal length ({:g}, {:g}) is not positive", focal
    normalized = ((centre >= 0) & (centre <= _LARGEST_NORMALIZED)).all(1)
    reason = "its principal point ({:g}, {:g}) is normalized (a fraction of width and height), not in pixels"
    yield ~normalized, reason, centre
    ratio = focal[:, 0] / focal[:, 1]
    good = np.maximum(ratio, 1 / ratio) <= _MAX_FOCAL_RATIO
    yield good, f"its fx is {{:g}} times its fy, more than {_MAX_FOCAL_RATIO:g} apart", ratio[:, None]
    # Without a size all that is known is that the image reaches from 0 to the principal point at the least.
    extent = centre if sizes is None else sizes
    inside = ((centre >= 0) & (centre <= extent)).all(1)
    yield inside, "its principal point ({:g}, {:g}) lies outside the image", centre
    view = 2 * np.degrees(np.arctan(extent / (2 * focal)))
    good = (view <= _MAX_FIELD_OF_VIEW).all(1)
    if sizes is not None:
        good &= (view >= _MIN_FIELD_OF_VIEW).all(1)
    bounds = f"{_MIN_FIELD_OF_VIEW:g} to {_MAX_FIELD_OF_VIEW:g}"
    yield good, f"its field of view is {{:.3g}} by {{:.3g}} degrees, not {bounds}", view
