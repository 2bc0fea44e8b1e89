"""opencv_cameras.json as Long-LRM and LaCT have it: world-to-camera matrices, OpenCV axes, intrinsics in pixels."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.importers.capture import Capture, Options, plain_name
from data.importers.json_frames import Values, finds_file, make_photos, matrix_of, number_of, size_of, the_file
from data.importers.lens import Lens, lens_of_values
from utils.text import counted, printable

_NAMES = ("opencv_cameras.json",)


def finds(source: Path) -> bool:
    """Whether a folder holds such a file, or a file is one."""
    return finds_file(source, _NAMES, "w2c")


def read(source: Path, options: Options) -> Capture:
    """Read the file.

    Raises:
        InputError: it is missing, or holds no frames.
    """
    path = the_file(source, _NAMES)
    photos = make_photos(path, options, _lens, _w2c)
    return Capture(plain_name(path.parent), f"{printable(path.name)}, {counted(len(photos), 'frame')}", photos, [])


def _w2c(values: Values) -> Float[np.ndarray, "4 4"]:
    return matrix_of(values, "w2c")


def _lens(values: Values, image: Path) -> Lens:
    intrinsics = {name: number_of(values, name) for name in ("fx", "fy", "cx", "cy")}
    return lens_of_values("PINHOLE", size_of(values, image), intrinsics, fisheye=False)
