"""Images of a capture as frames of a scene: their bytes kept where nothing changes, else turned and undistorted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.importers.lens import Four, Lens, Size
from data.importers.undistortion import Undistortion, plan_undistortion
from data.packed import ImageFile
from data.transforms import (
    IMAGE_ERRORS,
    MAX_IMAGE_BYTES,
    PNG_BITS,
    encode_pixels,
    has_transparency,
    open_image,
    orientation,
    to_8_bits,
    why_undecodable,
)
from utils.errors import InputError
from utils.files import read_bytes

# Pixels by which rounding may change a side that was resized.
_ROUNDED = 1.5
# By EXIF orientation: what makes the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of those the ones that swap width and height.
_SWAPS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Frame:
    """What is done to an image.

    Attributes:
        lens: for the pixels of the image, turned if it is.
        fxfycxcy: of the frame that is written.
        turn: by EXIF orientation.
        undistortion: None for a pinhole camera.
        is_kept: its bytes stay as they are.
        notes: what happens to it, for people; it follows a number of images.
    """

    path: Path
    lens: Lens
    fxfycxcy: Four
    turn: int
    undistortion: Undistortion | None
    is_kept: bool
    notes: tuple[str, ...]

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.lens.size

    def read(self) -> bytes:
        """The content of the frame's file: JPEG for JPEG, PNG for PNG.

        Raises:
            IMAGE_ERRORS: the image is not whole.
        """
        content = read_bytes(self.path, MAX_IMAGE_BYTES)
        if self.is_kept:
            return content
        with open_image(content) as image:
            pixels = np.asarray(upright(to_8_bits(image), self.turn))
            changed = pixels if self.undistortion is None else self.undistortion.pixels(pixels)
            return encode_pixels(changed, "png" if image.format == "PNG" else "jpeg")


def plan_frame(path: Path, lens: Lens) -> Frame:
    """What is to be done to an image for its camera; only its header is decoded.

    Raises:
        InputError: it is no image, its shape is not that of the camera's images, or its distortion leaves nothing.
    """
    try:
        content = read_bytes(path, MAX_IMAGE_BYTES)
        with open_image(content) as image:
            tag = orientation(image)
            is_8_bit = _has_8_bits(image, content)
            notes = _notes_of_pixels(image, is_8_bit)
    except IMAGE_ERRORS as error:
        raise _undecodable(error) from None
    fitted, turn = fit(lens, image.size, tag)
    undistortion = None if lens.is_pinhole else plan_undistortion(fitted)
    fxfycxcy = fitted.fxfycxcy if undistortion is None else undistortion.fxfycxcy
    notes += _notes_of_size(lens, fitted, tag, turn)
    is_kept = is_8_bit and turn == 1 and undistortion is None
    return Frame(path, fitted, fxfycxcy, turn, undistortion, is_kept, tuple(notes))


def image_size(path: ImageFile) -> Size:
    """Width and height of an image as it is stored.

    Raises:
        InputError: it is no image.
    """
    try:
        with open_image(path) as image:
            return image.size
    except IMAGE_ERRORS as error:
        raise _undecodable(error) from None


def _undecodable(error: Exception) -> InputError:
    return InputError(f"it cannot be decoded: {why_undecodable(error)}")


def fit(lens: Lens, stored: Size, tag: int) -> tuple[Lens, int]:
    """A lens for the pixels of an image, and the EXIF orientation by which the image is turned first (1: not).

    Cameras may have been made from smaller images, and from images as they are stored or turned upright: their size
    says which. Where both fit, the image stays as it is.

    Raises:
        InputError: neither fits.
    """
    if _is_of_shape(lens.size, stored):
        return lens.resized(stored), 1
    if tag in _SWAPS and _is_of_shape(lens.size, stored[::-1]):
        return lens.resized(stored[::-1]), tag
    width, height = lens.size
    turned = ", turned by its EXIF orientation or not" if tag in _SWAPS else ""
    raise InputError(
        f"it has {stored[0]}x{stored[1]} pixels{turned}, but its camera is for {width}x{height}, another shape: "
        "use the images that the cameras were made from"
    )


def _is_of_shape(one: Size, other: Size) -> bool:
    """Whether two sizes are the same but for scale and rounding."""
    across = one[0] / other[0]
    down = one[1] / other[1]
    return abs(across - down) <= _ROUNDED * max(across, down) / min(*one, *other)


def upright(image: Image.Image, tag: int) -> Image.Image:
    """An image turned by its EXIF orientation."""
    return image.transpose(_TURNS[tag]) if tag in _TURNS else image


def _has_8_bits(image: Image.Image, content: bytes) -> bool:
    """Whether an image is of 8-bit gray or RGB, with alpha or not."""
    if image.format == "PNG":
        return image.mode in ("L", "LA", "RGB", "RGBA") and content[PNG_BITS] == 8
    return image.mode in ("L", "RGB")


def _notes_of_pixels(image: Image.Image, is_8_bit: bool) -> list[str]:
    notes = ["with transparent parts, which are kept"] if has_transparency(image) else []
    if not is_8_bit:
        kind = "16-bit" if image.mode.startswith(("I", "F")) or image.mode in ("L", "LA", "RGB", "RGBA") else image.mode
        notes.append(f"of {kind} pixels, written anew as 8-bit {'RGBA' if notes else 'RGB'}")
    return notes


def _notes_of_size(lens: Lens, fitted: Lens, tag: int, turn: int) -> list[str]:
    notes = []
    if turn != 1:
        notes.append("turned by their EXIF orientation, as the cameras are for upright images, and written anew")
    elif tag in _TURNS:
        notes.append("not turned by their EXIF orientation, as the cameras fit the stored pixels")
    if fitted.size != lens.size:
        notes.append(
            f"of {fitted.size[0]}x{fitted.size[1]} pixels with cameras for {lens.size[0]}x{lens.size[1]}, rescaled"
        )
    return notes
