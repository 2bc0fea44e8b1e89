"""COLMAP's sparse models, text and binary: their cameras and the poses of their images.

The formats are those of https://colmap.github.io/format.html, which versions 3 and 4 share; version 4 adds files of
rigs and frames, which nothing here needs. Points are passed over.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from data.importers.lens import model_of
from utils.errors import InputError
from utils.files import open_regular, read_text
from utils.text import printable, shown

Record = TypeVar("Record")

# Bytes of the smallest record that a file can hold.
_LEAST_CAMERA = 4 + 4 + 8 + 8 + 3 * 8
_LEAST_IMAGE = 4 + 7 * 8 + 4 + 1 + 8
_POINT_BYTES = 24
# Longer names are no files of any system.
_LONGEST_NAME = 4096
_HUGE = 1 << 31


@dataclass(frozen=True)
class ModelCamera:
    """A camera as a model has it; whether it is one that is known is not asked yet."""

    number: int
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class ModelImage:
    """A registered image: the name of its file, its camera's number and its world-to-camera matrix."""

    name: str
    camera: int
    w2c: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Model:
    """A sparse model.

    Attributes:
        folder: where it lies.
        is_binary: read from .bin, not from .txt files.
        cameras: by number.
    """

    folder: Path
    is_binary: bool
    cameras: dict[int, ModelCamera]
    images: list[ModelImage]


def holds_model(folder: Path) -> bool:
    """Whether a folder holds the files of a model."""
    return any(
        all((folder / f"{part}{suffix}").is_file() for part in ("cameras", "images")) for suffix in (".bin", ".txt")
    )


def read_model(folder: Path) -> Model:
    """Read a model; its binary files if it has both kinds.

    Raises:
        InputError: a file is damaged, or two cameras have one number; the message names the file.
    """
    is_binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    if is_binary:
        cameras = _read_binary(folder / "cameras.bin", _LEAST_CAMERA, _binary_camera)
        images = _read_binary(folder / "images.bin", _LEAST_IMAGE, _binary_image)
    else:
        cameras = _read_lines(folder / "cameras.txt", _text_cameras)
        images = _read_lines(folder / "images.txt", _text_images)
    by_number = {camera.number: camera for camera in cameras}
    if len(by_number) < len(cameras):
        raise InputError(f"{printable(str(folder))}: two of its cameras have one number")
    return Model(folder, is_binary, by_number, images)


def pose(quaternion: tuple[float, ...], translation: tuple[float, ...]) -> Float[np.ndarray, "4 4"]:
    """A world-to-camera matrix from a quaternion w x y z and a translation; NaN for what is no rotation."""
    w2c = np.eye(4)
    norm = math.hypot(*quaternion)
    if not math.isfinite(norm) or norm == 0:
        return np.full((4, 4), np.nan)
    w, x, y, z = (value / norm for value in quaternion)
    w2c[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    w2c[:3, 3] = translation
    return w2c


class _Reader:
    """A binary file, read so that no count in it can ask for more than the file holds."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def read(self, layout: str) -> tuple:
        """Little-endian numbers.

        Raises:
            ValueError: the file ends before.
        """
        size = struct.calcsize(f"<{layout}")
        self._take(size)
        return struct.unpack(f"<{layout}", self._file.read(size))

    def count(self, least: int) -> int:
        """A number of records that take at least so many bytes each."""
        (count,) = self.read("Q")
        if count * least > self._left:
            raise ValueError(f"{count} records of {least} bytes or more are promised where {self._left} bytes follow")
        return count

    def text(self) -> str:
        """A UTF-8 text up to a zero."""
        text = bytearray()
        while (byte := self.read("c")[0]) != b"\0":
            text += byte
            if len(text) > _LONGEST_NAME:
                raise ValueError(f"a name has more than {_LONGEST_NAME} bytes")
        return text.decode("utf-8")

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        self._take(size)
        self._file.seek(size, os.SEEK_CUR)

    def _take(self, size: int) -> None:
        if size > self._left:
            raise ValueError(f"it ends {size - self._left} bytes early")
        self._left -= size


def _read_binary(path: Path, least: int, read: Callable[[_Reader], Record]) -> list[Record]:
    try:
        with open_regular(path) as file:
            reader = _Reader(file)
            return [read(reader) for _ in range(reader.count(least))]
    except (OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from None


def _binary_camera(reader: _Reader) -> ModelCamera:
    number, kind, width, height = reader.read("IiQQ")
    known = model_of(kind)
    if known is None:
        raise ValueError(f"camera {number} is of model number {kind}, which is none of COLMAP's")
    if max(width, height) > _HUGE:
        raise ValueError(f"camera {number} has images of {width}x{height} pixels")
    model, parameters = known
    return ModelCamera(number, model, width, height, reader.read(f"{parameters}d"))


def _binary_image(reader: _Reader) -> ModelImage:
    _, *numbers = reader.read("I7d")
    (camera,) = reader.read("I")
    name = reader.text()
    reader.skip(reader.count(_POINT_BYTES) * _POINT_BYTES)
    return ModelImage(name, camera, pose(tuple(numbers[:4]), tuple(numbers[4:])))


def _read_lines(path: Path, read: Callable[[Iterator[str]], list[Record]]) -> list[Record]:
    try:
        return read(iter(read_text(path).split("\n")))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _text_cameras(lines: Iterator[str]) -> list[ModelCamera]:
    cameras = []
    for line in _filled(lines):
        fields = line.split()
        if len(fields) < 5:
            raise ValueError(f"{shown(line)} is not the line of a camera")
        number, model, width, height, *parameters = fields
        cameras.append(ModelCamera(_whole(number), model, _whole(width), _whole(height), tuple(map(float, parameters))))
    return cameras


def _text_images(lines: Iterator[str]) -> list[ModelImage]:
    images = []
    for line in _filled(lines):
        fields = line.strip().split(maxsplit=9)
        if len(fields) < 10:
            raise ValueError(f"{shown(line)} is not the line of an image")
        _, *numbers, camera, name = fields
        values = tuple(map(float, numbers))
        images.append(ModelImage(name, _whole(camera), pose(values[:4], values[4:])))
        next(lines, "")  # its points, which may be none
    return images


def _filled(lines: Iterator[str]) -> Iterator[str]:
    return (line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _whole(text: str) -> int:
    if len(text) > 10 or not text.isascii() or not text.isdigit():
        raise ValueError(f"{shown(text)} is not a whole number")
    return int(text)


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return InputError(f"{printable(str(path))} cannot be read: {printable(reason, 200)}; export the model again")
