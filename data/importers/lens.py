"""Lenses as other programs describe them: COLMAP's camera models, with OpenCV's coefficients of distortion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from utils.errors import InputError
from utils.text import counted, shown

Four = tuple[float, float, float, float]
Size = tuple[int, int]

# COLMAP's number, its parameters in order, of those that can be undistorted. `f` stands for fx and fy.
MODELS: dict[str, tuple[int, str]] = {
    "SIMPLE_PINHOLE": (0, "f cx cy"),
    "PINHOLE": (1, "fx fy cx cy"),
    "SIMPLE_RADIAL": (2, "f cx cy k1"),
    "RADIAL": (3, "f cx cy k1 k2"),
    "OPENCV": (4, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": (5, "fx fy cx cy k1 k2 k3 k4"),
    "FULL_OPENCV": (6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "SIMPLE_RADIAL_FISHEYE": (8, "f cx cy k1"),
    "RADIAL_FISHEYE": (9, "f cx cy k1 k2"),
    "SIMPLE_FISHEYE": (14, "f cx cy"),
    "FISHEYE": (15, "fx fy cx cy"),
}
# COLMAP's number and how many parameters, of those that cannot.
_REFUSED: dict[str, tuple[int, int]] = {
    "FOV": (7, 5),
    "THIN_PRISM_FISHEYE": (10, 12),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, 16),
    "SIMPLE_DIVISION": (12, 4),
    "DIVISION": (13, 5),
    "EUCM": (16, 6),
    "EQUIRECTANGULAR": (17, 2),
}
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_FISHEYE_COEFFICIENTS = ("k1", "k2", "k3", "k4")


@dataclass(frozen=True)
class Lens:
    """Intrinsics of a camera.

    Attributes:
        model: what its source calls it.
        size: width and height in pixels of the images that the intrinsics are for.
        fxfycxcy: in pixels; the centre of the first pixel is at (0.5, 0.5).
        distortion: OpenCV's k1 k2 p1 p2 k3 k4 k5 k6, or of a fisheye lens k1 k2 k3 k4.
        fisheye: the angle to the optical axis is distorted (Kannala and Brandt 2006), not its tangent.
    """

    model: str
    size: Size
    fxfycxcy: Four
    distortion: tuple[float, ...] = ()
    fisheye: bool = False

    @property
    def is_pinhole(self) -> bool:
        """Whether nothing is distorted."""
        return not self.fisheye and not any(self.distortion)

    def field_of_view(self) -> tuple[float, float]:
        """Degrees that a pinhole camera of these intrinsics sees across the width and across the height."""
        width, height = self.size
        fx, fy, _, _ = self.fxfycxcy
        return math.degrees(2 * math.atan(width / (2 * fx))), math.degrees(2 * math.atan(height / (2 * fy)))

    def resized(self, size: Size) -> "Lens":
        """The same lens for images of another size."""
        across = size[0] / self.size[0]
        down = size[1] / self.size[1]
        fx, fy, cx, cy = self.fxfycxcy
        return replace(self, size=size, fxfycxcy=(fx * across, fy * down, cx * across, cy * down))


def model_of(number: int) -> tuple[str, int] | None:
    """The name and the number of parameters of COLMAP's camera model; None if it has none of that number."""
    for name, (known, parameters) in MODELS.items():
        if known == number:
            return name, len(parameters.split())
    return next(((name, count) for name, (known, count) in _REFUSED.items() if known == number), None)


def make_lens(model: str, size: Size, parameters: Sequence[float]) -> Lens:
    """A lens of one of COLMAP's camera models.

    Raises:
        InputError: the model is unknown or cannot be undistorted, or numbers are missing, too many or not finite.
    """
    if model not in MODELS:
        known = "cannot be undistorted here" if model in _REFUSED else "is none that is known"
        raise InputError(f"camera model {shown(model)} {known}: undistort the images first; known: {', '.join(MODELS)}")
    names = MODELS[model][1].split()
    if len(parameters) != len(names):
        raise InputError(f"camera model {model} has {counted(len(names), 'parameter')}, not {len(parameters)}")
    values = dict(zip(names, parameters, strict=True))
    return lens_of_values(model, size, values, fisheye="FISHEYE" in model)


def lens_of_values(model: str, size: Size, values: dict[str, float], fisheye: bool) -> Lens:
    """A lens from its parameters by name (`f` or `fx`, `fy`; `cx`, `cy`; coefficients, 0 where there are none).

    Raises:
        InputError: a parameter is not finite or a focal length not positive, or the size is of no image.
    """
    if min(size) < 1:
        raise InputError(f"its images have {size[0]}x{size[1]} pixels")
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"its {name} is {value}, not a finite number")
    fx = values.get("fx", values.get("f", 0.0))
    fy = values.get("fy", fx)
    if min(fx, fy) <= 0:
        raise InputError(f"its focal length ({fx:g}, {fy:g}) is not positive")
    names = _FISHEYE_COEFFICIENTS if fisheye else _COEFFICIENTS
    distortion = tuple(values.get(name, 0.0) for name in names)
    return Lens(model, size, (fx, fy, values["cx"], values["cy"]), distortion, fisheye)
