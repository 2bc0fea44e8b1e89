"""RealEstate10K's cameras: rows of 18 numbers, and the text files, one a clip, in which they are published.

A row is fx, fy, cx, cy as fractions of width and height, two zeros, and the world-to-camera matrix 3x4 by rows, OpenCV
axes. In a text file the first line is the address of the video; every other line is a frame's timestamp in microseconds
and its row.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from utils.errors import InputError
from utils.files import open_regular, read_text
from utils.text import printable, shown

_NUMBERS = 18
# A timestamp of so many digits lies in the 33rd year of a video.
_MOST_DIGITS = 15
# Bytes within which the first two lines of a file end.
_HEAD = 4096


@dataclass(frozen=True)
class ClipCameras:
    """The cameras of a clip.

    Attributes:
        url: the address of its video.
        timestamps: microseconds from the beginning of the video.
        rows: one a frame.
    """

    url: str
    timestamps: Int64[np.ndarray, " n"]
    rows: Float[np.ndarray, "n 18"]

    @property
    def w2c(self) -> Float[np.ndarray, "n 4 4"]:
        """World-to-camera matrices, OpenCV axes."""
        return w2c_of_rows(self.rows)


def w2c_of_rows(rows: Float[np.ndarray, "n 18"]) -> Float[np.ndarray, "n 4 4"]:
    """World-to-camera matrices of rows."""
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3] = rows[:, 6:].reshape(-1, 3, 4)
    return matrices


def is_camera_file(path: Path) -> bool:
    """Whether a file begins as the camera file of a clip does."""
    try:
        with open_regular(path) as file:
            lines = file.read(_HEAD).decode("utf-8-sig", "replace").splitlines()
    except OSError:
        return False
    return len(lines) > 1 and "://" in lines[0] and len(lines[1].split()) == 1 + _NUMBERS


def read_camera_file(path: Path) -> ClipCameras:
    """Read the cameras of a clip.

    Raises:
        InputError: the file cannot be read, a line is not that of a frame, or it has none.
    """
    name = printable(str(path))
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {printable(str(error), 200)}") from None
    frames = {number: line.split() for number, line in enumerate(lines[1:], 2) if line.strip()}
    if not frames:
        raise InputError(f"{name} has no line of a frame: fetch it again")
    rows = [_read_row(fields, f"{name}, line {number}") for number, fields in frames.items()]
    timestamps = [int(fields[0]) for fields in frames.values()]
    return ClipCameras(lines[0].strip(), np.array(timestamps, np.int64), np.array(rows))


def _read_row(fields: list[str], where: str) -> list[float]:
    try:
        row = [float(field) for field in fields[1:]]
    except ValueError:
        row = []
    if len(row) != _NUMBERS or not is_timestamp(fields[0]):
        line = shown(" ".join(fields), 60)
        raise InputError(f"{where}: {line} is not a timestamp and {_NUMBERS} numbers: fetch the file again")
    return row


def is_timestamp(text: str) -> bool:
    """Whether a text is a number of microseconds."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
