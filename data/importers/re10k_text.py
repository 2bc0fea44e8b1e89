"""A camera file of a RealEstate10K clip, beside frames that are named by their timestamps."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.importers.capture import Capture, Options, Photo, images_in, make_photo, plain_name
from data.importers.images import image_size
from data.importers.lens import Lens, lens_of_values
from data.importers.re10k_cameras import is_camera_file, read_camera_file
from data.transforms import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.files import is_inside
from utils.text import counted, printable, shown


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
    clip = read_camera_file(path)
    own = path.with_suffix("")
    folder = options.images or (own if own.is_dir() else path.parent)
    images = {image.stem: image for image in sorted(images_in(folder))}
    root = None if options.allow_outside else folder
    frames = zip(map(str, clip.timestamps), clip.w2c, clip.rows[:, :4], strict=True)
    photos = [_photo(name, w2c, shares, images, root) for name, w2c, shares in frames]
    source_name = f"RealEstate10K text {printable(path.name)}, {counted(len(photos), 'frame')}"
    return Capture(plain_name(own), source_name, photos, [])


def _find_text(source: Path) -> Path | None:
    paths = [source] if source.is_file() else sorted(source.glob("[!.]*.txt"))
    return next((path for path in paths if path.suffix == ".txt" and is_camera_file(path)), None)


def _photo(
    name: str, w2c: Float[np.ndarray, "4 4"], shares: Float[np.ndarray, "4"], images: dict[str, Path], root: Path | None
) -> Photo:
    def find() -> tuple[Path, Lens]:
        image = images.get(name)
        if image is None:
            raise InputError(f"there is no image {shown(name)} ({', '.join(IMAGE_SUFFIXES)})")
        if root is not None and not is_inside(image, root):
            raise InputError(f"image {shown(image.name, 300)} leads out of {printable(str(root))}")
        return image, _lens(shares, image)

    return make_photo(name, w2c, find)


def _lens(shares: Float[np.ndarray, "4"], image: Path) -> Lens:
    width, height = image_size(image)
    pixels = shares * np.array([width, height, width, height])
    return lens_of_values(
        "PINHOLE", (width, height), dict(zip(("fx", "fy", "cx", "cy"), pixels.tolist(), strict=True)), fisheye=False
    )
