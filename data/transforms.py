"""Image and intrinsics, always changed together (spec section 2)."""

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


def resize_and_crop(
    image: Image.Image,
    fxfycxcy: Float[np.ndarray, "4"],
    image_size: int,
    patch_size: int,
    square_crop: bool,
) -> tuple[Image.Image, Float[np.ndarray, "4"]]:
    """Resize (Lanczos on 8 bits) and optionally cut the centred square; a 3-D point stays on its pixel.

    The two scale factors differ a little, since the longer side is rounded to whole patches.
    """
    width, height = resized_shape(*image.size, image_size, patch_size)
    scale_x, scale_y = width / image.width, height / image.height
    fxfycxcy = fxfycxcy * np.array([scale_x, scale_y, scale_x, scale_y])
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if square_crop:
        box = square_box(width, height)
        image = image.crop(box)
        fxfycxcy = fxfycxcy - np.array([0, 0, *box[:2]])
    return image, fxfycxcy


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
