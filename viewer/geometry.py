"""Where a person stands, as the browser tells it, as a camera of the model; how its picture fills the window.

The world of the window is the model's (normalised) frame, enlarged: keys then move at a walking pace.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation

from geometry.cameras import Cameras
from geometry.orbit import Orbit
from utils.errors import InputError

# Units of the window's world in a unit of the model's frame.
WORLD_SCALE = 4.0
# How far ahead of a camera it turns about, in units of the window's world, unless it looks at a thing.
_FOCUS = 3.0
_TOO_NEAR = 0.1
# What is up in the world of a scene whose cameras stand around nothing: that of the mean camera.
_UP = np.array([0.0, -1.0, 0.0])
# Pixels of the window's longer side that a client may claim, and how far it may go.
_LARGEST_WINDOW = 32768
_FARTHEST = 1e6
# Rows of what is sent, unless the picture has more or the window fewer.
_ROWS = 512
# Enlarging by whole numbers, at most: a client may claim any field of view.
_MOST_TIMES = 8
# Colour of the bars beside the picture.
_BARS = (24, 25, 28)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Viewpoint:
    """A client's camera: pose in the model's frame (OpenCV axes), vertical field of view in radians, window in pixels.

    Its principal point is the middle of the window, and its pixels are square.
    """

    c2w: Float[np.ndarray, "4 4"]
    fov: float
    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels of the window."""
        return self.height / 2 / math.tan(self.fov / 2)


def read_viewpoint(wxyz: Any, position: Any, fov: float, width: int, height: int) -> Viewpoint:
    """A viewpoint from what a client says of its camera; nothing of it is trusted.

    Raises:
        InputError: says what cannot be.
    """
    rotation = _finite(wxyz, 4, "orientation")
    place = _finite(position, 3, "position")
    if not 0.01 < np.linalg.norm(rotation) < 100:
        raise InputError("the orientation of the camera is no rotation")
    if np.abs(place).max() > _FARTHEST:
        raise InputError("the position of the camera is too far away")
    if not (1 <= width <= _LARGEST_WINDOW and 1 <= height <= _LARGEST_WINDOW and 1e-3 < fov < math.pi - 1e-3):
        raise InputError("the window or its field of view has no size")
    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_quat(rotation[[1, 2, 3, 0]]).as_matrix()
    c2w[:3, 3] = place / WORLD_SCALE
    return Viewpoint(c2w, float(fov), int(width), int(height))


def _finite(values: Any, count: int, what: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(f"the {what} of the camera is not {count} finite numbers")
    return array


def to_world(c2w: Float[np.ndarray, "4 4"]) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "3"]]:
    """Quaternion (w first) and position in the window's world of a pose in the model's frame."""
    xyzw = Rotation.from_matrix(c2w[:3, :3]).as_quat()
    return xyzw[[3, 0, 1, 2]], c2w[:3, 3] * WORLD_SCALE


def turning_point(c2w: Float[np.ndarray, "4 4"], orbit: Orbit | None) -> Float[np.ndarray, "3"]:
    """Where in the window's world a camera at a pose turns about: straight ahead, as far as what the scene's show."""
    ahead = 0.0 if orbit is None else orbit.ahead(c2w) * WORLD_SCALE
    return c2w[:3, 3] * WORLD_SCALE + (ahead if ahead > _TOO_NEAR else _FOCUS) * c2w[:3, 2]


def up_direction(orbit: Orbit | None) -> Float[np.ndarray, "3"]:
    """What is up in the window's world."""
    return _UP if orbit is None else orbit.up


def at_viewpoint(viewpoint: Viewpoint, lens: Cameras) -> Cameras:
    """The camera [] of the model that stands where the viewpoint is and sees through `lens` []."""
    c2w = torch.from_numpy(viewpoint.c2w).to(lens.c2w)
    return Cameras(c2w, lens.fxfycxcy, lens.height, lens.width)


def is_at(viewpoint: Viewpoint, camera: Cameras, tolerance: float = 1e-3) -> bool:
    """Whether the viewpoint is the pose of `camera` [] but for what a browser loses of it."""
    return bool(np.abs(viewpoint.c2w - camera.c2w.double().cpu().numpy()).max() < tolerance)


def fitting_fov(lens: Cameras, aspect: float) -> float:
    """The vertical field of view, in radians, of the window into which the picture of `lens` [] just fits.

    Args:
        aspect: width of the window over its height.
    """
    fx, fy, cx, cy = lens.fxfycxcy.double().tolist()
    across = max(cx, lens.width - cx) / fx
    down = max(cy, lens.height - cy) / fy
    return 2 * math.atan(max(down, across / aspect))


def vertical_fov(lens: Cameras) -> float:
    """The angle, in radians, that the picture of `lens` [] spans from top to bottom."""
    _, fy, _, cy = lens.fxfycxcy.double().tolist()
    return math.atan(cy / fy) + math.atan((lens.height - cy) / fy)


def with_fov(lens: Cameras, fov: float) -> Cameras:
    """The lens [] with its focal lengths changed so that the picture spans `fov` radians, about, from top to bottom."""
    zoom = math.tan(vertical_fov(lens) / 2) / math.tan(fov / 2)
    scale = torch.tensor([zoom, zoom, 1, 1]).to(lens.fxfycxcy)
    return Cameras(lens.c2w, lens.fxfycxcy * scale, lens.height, lens.width)


def with_size(lens: Cameras, height: int, width: int) -> Cameras:
    """The same view [] as a picture of another size."""
    x = width / lens.width
    y = height / lens.height
    return Cameras(lens.c2w, lens.fxfycxcy * torch.tensor([x, y, x, y]).to(lens.fxfycxcy), height, width)


def picture_box(lens: Cameras, viewpoint: Viewpoint) -> Box:
    """Where in the window, in pixels (left, top, right, bottom), the picture of `lens` [] lies.

    A point in space is then on the same pixel of the window by the picture and by the viewpoint's own camera.
    """
    fx, fy, cx, cy = lens.fxfycxcy.double().tolist()
    x = viewpoint.focal / fx
    y = viewpoint.focal / fy
    left = viewpoint.width / 2 - cx * x
    top = viewpoint.height / 2 - cy * y
    return left, top, left + lens.width * x, top + lens.height * y


def letterbox(
    pixels: UInt8[np.ndarray, "h w 3"], lens: Cameras, viewpoint: Viewpoint
) -> UInt8[np.ndarray, "window_h window_w 3"]:
    """The whole window with the picture in its place, at as many pixels as are worth sending."""
    rows = min(max(_ROWS, len(pixels)), viewpoint.height)
    columns = max(1, round(viewpoint.width * rows / viewpoint.height))
    x = columns / viewpoint.width
    y = rows / viewpoint.height
    left, top, right, bottom = picture_box(lens, viewpoint)
    box = (left * x, top * y, right * x, bottom * y)
    # The rows and columns of what is sent that the picture covers.
    first_x, last_x = (min(max(0, math.floor(edge + 0.5)), columns) for edge in box[::2])
    first_y, last_y = (min(max(0, math.floor(edge + 0.5)), rows) for edge in box[1::2])
    if first_x == last_x or first_y == last_y:
        return np.full((rows, columns, 3), _BARS, np.uint8)
    part = _enlarge(pixels, box, (first_x, first_y, last_x, last_y))
    bars = (first_y, rows - last_y, first_x, columns - last_x)
    return cv2.copyMakeBorder(part, *bars, cv2.BORDER_CONSTANT, value=_BARS)


def _enlarge(
    pixels: UInt8[np.ndarray, "h w 3"], box: Box, part: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "part_h part_w 3"]:
    """The pixels of `part` (left, top, right, bottom) where the picture covers `box`.

    Enlarged by cubic splines as often as is whole, then by straight lines to the very place: that takes half the time
    of splines alone.
    """
    left, top, right, bottom = box
    times = min(max(1, round((right - left) / pixels.shape[1])), _MOST_TIMES)
    if times > 1:
        pixels = cv2.resize(pixels, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    across = pixels.shape[1] / (right - left)
    down = pixels.shape[0] / (bottom - top)
    # From pixels of the part to those of the picture, whose centres OpenCV has at whole numbers.
    shift_x = (part[0] + 0.5 - left) * across - 0.5
    shift_y = (part[1] + 0.5 - top) * down - 0.5
    place = np.array([[across, 0, shift_x], [0, down, shift_y]])
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if times > 1 else cv2.INTER_CUBIC)
    size = (part[2] - part[0], part[3] - part[1])
    return cv2.warpAffine(pixels, place, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
