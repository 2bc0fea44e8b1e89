"""Frames in JSON files of cameras: an object with `frames`, values that hold for all of them beside it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.importers.capture import Options, Photo, find_image, make_photo
from data.importers.images import image_size
from data.importers.lens import Lens, Size
from utils.errors import InputError
from utils.files import read_json
from utils.text import printable, shown

Values = Mapping[str, Any]
# How a format reads the lens and the pose of a frame; the path is that of its image.
ReadLens = Callable[[Values, Path], Lens]
ReadPose = Callable[[Values], np.ndarray]
FindImage = Callable[[Path, str, Path | None], Path]


def read_frames(path: Path) -> list[Values]:
    """The frames of a file, each with what the file says of all; the file may be a bare array of them.

    Raises:
        InputError: it is not JSON or holds no frames.
    """
    record = read_json(path, "file of cameras")
    frames = record.get("frames") if isinstance(record, dict) else record
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{printable(str(path))} is no file of cameras: it has no frames")
    common = {} if isinstance(record, list) else {key: value for key, value in record.items() if key != "frames"}
    return [common | frame for frame in frames]


def finds_file(source: Path, names: Sequence[str], key: str) -> bool:
    """Whether a folder holds one of `names`, or a file is one whose first frame has `key`."""
    path = find_file(source, names)
    return path is not None and (source.is_dir() or (path.suffix.lower() == ".json" and key in read_frames(path)[0]))


def make_photos(
    path: Path, options: Options, read_lens: ReadLens, read_pose: ReadPose, find: FindImage = find_image
) -> list[Photo]:
    """The photos of a file; what cannot be read of one costs only that."""
    frames = read_frames(path)
    return [
        _make_photo(frame, number, path, options, read_lens, read_pose, find) for number, frame in enumerate(frames)
    ]


def _make_photo(
    frame: Values, number: int, path: Path, options: Options, read_lens: ReadLens, read_pose: ReadPose, find: FindImage
) -> Photo:
    folder = options.images or path.parent
    name = frame.get("file_path")
    if not isinstance(name, str):
        return Photo(f"frame {number}", np.full((4, 4), np.nan), fault=f"frame {number} has no file_path")
    try:
        w2c = read_pose(frame)
    except InputError as error:
        return Photo(name, np.full((4, 4), np.nan), fault=f"frame {number}, {shown(name, 300)}: {error}")

    def image_and_lens() -> tuple[Path, Lens]:
        image = find(folder, name, None if options.allow_outside else folder)
        try:
            return image, read_lens(frame, image)
        except InputError as error:
            raise InputError(f"frame {number}, {shown(name, 300)}: {error}") from None

    return make_photo(name, w2c, image_and_lens)


def number_of(values: Values, key: str, default: float | None = None) -> float:
    """A number.

    Raises:
        InputError: it is missing without a default, or no number.
    """
    value = values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"its {key} is {'missing' if value is None else f'{shown(value)}, not a number'}")
    return float(value)


def matrix_of(values: Values, key: str) -> Float[np.ndarray, "4 4"]:
    """A pose, 4x4 or its first three rows.

    Raises:
        InputError: it is not that.
    """
    value = values.get(key)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape == (3, 4):
        return np.vstack([matrix, [0, 0, 0, 1]])
    if matrix.shape != (4, 4):
        raise InputError(f"its {key} is {'missing' if value is None else 'not 4 x 4 numbers'}")
    return matrix


def size_of(values: Values, image: Path) -> Size:
    """Width and height that the cameras are for; those of the image if the file does not say.

    Raises:
        InputError: they are no whole numbers, or the image is none.
    """
    if values.get("w") is None or values.get("h") is None:
        return image_size(image)
    width = number_of(values, "w")
    height = number_of(values, "h")
    if not (math.isfinite(width) and math.isfinite(height)):
        raise InputError(f"its images have {width} x {height} pixels")
    return round(width), round(height)


def the_file(source: Path, names: Sequence[str]) -> Path:
    """The file that `find_file` finds.

    Raises:
        InputError: there is none.
    """
    path = find_file(source, names)
    if path is None:
        raise InputError(f"{printable(str(source))} holds no {names[0]}")
    return path


def find_file(source: Path, names: Sequence[str]) -> Path | None:
    """The source itself if it is a file, else the first of `names` in it."""
    if source.is_file():
        return source
    return next((source / name for name in names if (source / name).is_file()), None)
