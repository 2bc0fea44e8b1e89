"""The usual ways to misread a file of cameras, and what undoes each.

Between two views a reading is known by its epipolar lines and by what lies in front of the cameras
(`geometry.epipolar`). What no pair of images can tell:

- a turn or a mirror image of the whole world (a matrix to the right of every w2c); the mirror shows in the sign of the
  rotations' determinant alone;
- a change of sign of all three camera axes, which keeps every line: it puts all points behind the cameras, so that
  OpenGL axes and a mirrored x axis differ only in what is in front;
- mirrored images with right poses from right images with mirrored poses: the two are one reading here;
- left and right of cameras that move in a plane without turning out of it; c2w and w2c of cameras that barely turn have
  the same lines, and again differ in what is in front.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Lenses = Float[np.ndarray, "n 4"]
Poses = Float[np.ndarray, "n 4 4"]
Sizes = Float[np.ndarray, "n 2"]
Correction = Callable[[Lenses, Poses, Sizes], tuple[Lenses, Poses]]

# Shares of the width and of the height by which a principal point may lie off the middle of a lens as it is built.
_OFF_CENTRE = 0.02
_RIGHT = np.diag([-1.0, 1, 1, 1])
_UPSIDE = np.diag([1.0, -1, 1, 1])
_OPENGL = np.diag([1.0, -1, -1, 1])
_HALF_TURN = np.diag([-1.0, -1, 1, 1])
_CLOCKWISE = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
_TRANSPOSED = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Misreading:
    """One way to misread cameras.

    Attributes:
        advice: what is wrong with the cameras and what to do, for messages.
        correct: intrinsics (pixels) and w2c as they should be, given those that were read and the images' sizes.
    """

    advice: str
    correct: Correction


def _inverted(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy, np.linalg.inv(w2c)


def _opengl(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy, _OPENGL @ w2c


def _inverted_opengl(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy, _OPENGL @ np.linalg.inv(w2c)


def _resized(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    """Scaled until principal points are in the middle; those at an edge tell no size."""
    with np.errstate(all="ignore"):
        scale = sizes / (2 * fxfycxcy[:, 2:])
    return fxfycxcy * np.tile(np.where(np.isfinite(scale), scale, 1), 2), w2c


def _swapped_lens(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy[:, [1, 0, 3, 2]], w2c


def _swapped_axes(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy, _TRANSPOSED @ w2c @ _TRANSPOSED


def _transposed(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return fxfycxcy[:, [1, 0, 3, 2]], _TRANSPOSED @ w2c @ _TRANSPOSED


def _mirrored(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return _flipped(fxfycxcy, sizes, 0), _RIGHT @ w2c @ _RIGHT


def _upside_down(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return _flipped(fxfycxcy, sizes, 1), _UPSIDE @ w2c @ _UPSIDE


def _half_turned(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return _flipped(_flipped(fxfycxcy, sizes, 0), sizes, 1), _HALF_TURN @ w2c


def _clockwise(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return _flipped(fxfycxcy[:, [1, 0, 3, 2]], sizes, 0), _CLOCKWISE @ w2c


def _counterclockwise(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> tuple[Lenses, Poses]:
    return _flipped(fxfycxcy[:, [1, 0, 3, 2]], sizes, 1), _CLOCKWISE.T @ w2c


def _flipped(fxfycxcy: Lenses, sizes: Sizes, axis: int) -> Lenses:
    """Intrinsics of images turned over along x (0) or y (1)."""
    flipped = fxfycxcy.copy()
    flipped[:, 2 + axis] = sizes[:, axis] - flipped[:, 2 + axis]
    return flipped


MISREADINGS: dict[str, Misreading] = {
    "c2w for w2c": Misreading("the poses are camera-to-world: invert them", _inverted),
    "OpenGL for OpenCV": Misreading("the axes are OpenGL's (y up, z back): negate columns y and z of c2w", _opengl),
    "c2w for w2c, OpenGL for OpenCV": Misreading(
        "the poses are camera-to-world with OpenGL's axes: negate columns y and z, then invert them", _inverted_opengl
    ),
    "intrinsics of another size": Misreading(
        "the intrinsics are for images of another size: scale fx and cx by the ratio of the widths, fy and cy by that "
        "of the heights",
        _resized,
    ),
    "intrinsics with x and y swapped": Misreading("swap fx with fy and cx with cy", _swapped_lens),
    "poses with x and y swapped": Misreading("swap the poses' x and y", _swapped_axes),
    "x and y swapped": Misreading("swap x and y of intrinsics and poses, or transpose the images", _transposed),
    "mirrored left to right": Misreading("mirror the images, or negate x of cameras and world in w2c", _mirrored),
    "mirrored top to bottom": Misreading("mirror the images, or negate y of cameras and world in w2c", _upside_down),
    "images upside down": Misreading("turn the images by 180 degrees", _half_turned),
    "images turned clockwise": Misreading("turn the images counterclockwise by 90 degrees", _clockwise),
    "images turned counterclockwise": Misreading("turn the images clockwise by 90 degrees", _counterclockwise),
}


def corrected_cameras(fxfycxcy: Lenses, w2c: Poses, sizes: Sizes) -> dict[str, tuple[Lenses, Poses]]:
    """The cameras as each misreading would have them, those left out that change nothing.

    Args:
        fxfycxcy: intrinsics in pixels.
        w2c: world-to-camera matrices.
        sizes: width and height of the images in pixels.

    Returns:
        intrinsics and w2c by the misreading that they undo.
    """
    given = {name: reading.correct(fxfycxcy, w2c, sizes) for name, reading in MISREADINGS.items()}
    return {name: cameras for name, cameras in given.items() if not _is_same(cameras, (fxfycxcy, w2c), sizes)}


def _is_same(cameras: tuple[Lenses, Poses], given: tuple[Lenses, Poses], sizes: Sizes) -> bool:
    shift = np.abs(cameras[0] - given[0]) / np.tile(sizes, 2)
    return bool((shift <= _OFF_CENTRE).all() and np.allclose(cameras[1], given[1]))
