"""RealEstate10K's text files, one a clip, beside frames that are named by their timestamps.

The first line is the address of the video. Every other line is a frame's timestamp in microseconds, fx, fy, cx, cy as
fractions of width and height, two zeros, and the world-to-camera matrix 3x4 by rows, OpenCV axes.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.importers.capture import IMAGE_SUFFIXES, Capture, Options, Photo, images_in, make_photo, plain_name
from data.importers.images import image_size
from data.importers.lens import Lens, lens_of_values
from utils.errors import InputError
from utils.files import is_inside, read_text
from utils.text import counted, printable, shown

_NUMBERS = 18


def finds(source: Path) -> bool:
    """Whether a text file is of a clip, or a folder holds one of a clip."""
    return _find_text(source) is not None


def read(source: Path, options: Options) -> Capture:
    """Read a clip; its frames lie in the folder of the text file or in one of its name.

    Raises:
        InputError: there is no such file, or a line is not a frame's.
    """
    path = _find_text(source)
    if path is None:
        raise InputError(f"{printable(str(source))} is, or holds, no text file of a RealEstate10K clip")
    lines = [line.split() for line in read_text(path).splitlines()[1:]]
    own = path.with_suffix("")
    folder = options.images or (own if own.is_dir() else path.parent)
    images = {image.stem: image for image in sorted(images_in(folder))}
    root = None if options.allow_outside else folder
    photos = [_photo(fields, number, images, root, path) for number, fields in enumerate(lines, 2) if fields]
    source_name = f"RealEstate10K text {printable(path.name)}, {counted(len(photos), 'frame')}"
    return Capture(plain_name(own), source_name, photos, [])


def _find_text(source: Path) -> Path | None:
    paths = [source] if source.is_file() else sorted(source.glob("[!.]*.txt"))
    return next((path for path in paths if path.suffix == ".txt" and _is_of_clip(path)), None)


def _is_of_clip(path: Path) -> bool:
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError):
        return False
    return len(lines) > 1 and "://" in lines[0] and len(lines[1].split()) == 1 + _NUMBERS


def _photo(fields: list[str], number: int, images: dict[str, Path], root: Path | None, text: Path) -> Photo:
    try:
        values = np.array(fields[1:], dtype=np.float64)
    except ValueError:
        values = np.empty(0)
    if len(values) != _NUMBERS or not fields[0].isdigit():
        raise InputError(f"{printable(str(text))}, line {number}: it is not a timestamp and {_NUMBERS} numbers")
    w2c = np.vstack([values[6:].reshape(3, 4), [0, 0, 0, 1]])

    def find() -> tuple[Path, Lens]:
        image = images.get(fields[0])
        if image is None:
            raise InputError(f"there is no image {shown(fields[0])} ({', '.join(IMAGE_SUFFIXES)})")
        if root is not None and not is_inside(image, root):
            raise InputError(f"image {shown(image.name, 300)} leads out of {printable(str(root))}")
        return image, _lens(values[:4], image)

    return make_photo(fields[0], w2c, find)


def _lens(shares: Float[np.ndarray, "4"], image: Path) -> Lens:
    width, height = image_size(image)
    pixels = shares * np.array([width, height, width, height])
    return lens_of_values(
        "PINHOLE", (width, height), dict(zip(("fx", "fy", "cx", "cy"), pixels.tolist(), strict=True)), fisheye=False
    )
