"""Image and intrinsics, always changed together (spec section 2)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from utils.errors import InputError

# What Pillow raises for files that are not whole images.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def resized_shape(width: int, height: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """(width, height) after resizing the shorter side to `image_size` and the longer to a multiple of a patch."""
    if width < height:
        new_height, new_width = resized_shape(height, width, image_size, patch_size)
        return new_width, new_height
    return round(int(image_size / height * width) / patch_size) * patch_size, image_size


def square_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the centred square."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


@dataclass(frozen=True)
class Crop:
    """Resizing to `resized` (width, height), then cutting to `box` (left, top, right, bottom).

    `scale` and `offset` do to intrinsics what that does to pixels.
    """

    resized: tuple[int, int]
    box: tuple[int, int, int, int]
    scale: Float[np.ndarray, "4"]
    offset: Float[np.ndarray, "4"]

    def image(self, image: Image.Image) -> Image.Image:
        """The image resized (Lanczos on 8 bits) and cut."""
        return image.resize(self.resized, Image.Resampling.LANCZOS).crop(self.box)

    def intrinsics(self, fxfycxcy: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Intrinsics of the image before as those of the image after: a 3-D point stays on its pixel."""
        return fxfycxcy * self.scale - self.offset


def plan_crop(width: int, height: int, image_size: int, patch_size: int, square_crop: bool) -> Crop:
    """How an image of `width` x `height` is resized to `image_size`, and to the centred square if asked for.

    The two scale factors differ a little, since the longer side is rounded to whole patches.
    """
    resized = resized_shape(width, height, image_size, patch_size)
    box = square_box(*resized) if square_crop else (0, 0, *resized)
    scale = np.array([resized[0] / width, resized[1] / height] * 2)
    return Crop(resized, box, scale, np.array([0.0, 0.0, *box[:2]]))


def read_image(path: Path, where: str) -> Image.Image:
    """Decode an image file to RGB.

    Args:
        where: scene and frame, for the message.

    Raises:
        InputError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{where}: image not found: {path}") from None
    except IMAGE_ERRORS as error:
        raise InputError(f"{where}: image cannot be decoded: {path}: {error}") from None


def to_planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    """Channels first, for torch."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
