"""Image and intrinsics, always changed together (spec section 2)."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from utils.errors import InputError

Box = tuple[int, int, int, int]

# Pixels on either side that Lanczos weighs, of the coarser of the two grids.
_LANCZOS_REACH = 3

# What Pillow raises for files that are not whole images.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def resized_shape(width: int, height: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """(width, height) after resizing the shorter side to `image_size` and the longer to a multiple of a patch."""
    if width < height:
        new_height, new_width = resized_shape(height, width, image_size, patch_size)
        return new_width, new_height
    return round(int(image_size / height * width) / patch_size) * patch_size, image_size


def square_box(width: int, height: int) -> Box:
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
    box: Box
    scale: Float[np.ndarray, "4"]
    offset: Float[np.ndarray, "4"]

    def image(self, image: Image.Image) -> Image.Image:
        """The image resized (Lanczos on 8 bits) and cut."""
        source, size, box = self._narrowed(*image.size)
        return image.crop(source).resize(size, Image.Resampling.LANCZOS).crop(box)

    def pixels(self, pixels: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "3 h2 w2"]:
        """The same on a tensor, three times as fast; values differ from `image` by up to 2 of 255."""
        (left, top, right, bottom), (width, height), box = self._narrowed(pixels.shape[2], pixels.shape[1])
        part = pixels[None, :, top:bottom, left:right]
        part = F.interpolate(part, (height, width), mode="lanczos", antialias=True)[0]
        return part[:, box[1] : box[3], box[0] : box[2]].contiguous().numpy()

    def _narrowed(self, width: int, height: int) -> tuple[Box, tuple[int, int], Box]:
        """What to cut first, what to resize it to, and what to cut then, for the same pixels with less work."""
        left, right, new_left, new_right = _needed(width, self.resized[0], self.box[0], self.box[2])
        top, bottom, new_top, new_bottom = _needed(height, self.resized[1], self.box[1], self.box[3])
        offset = (new_left, new_top, new_left, new_top)
        box = tuple(edge - start for edge, start in zip(self.box, offset, strict=True))
        return (left, top, right, bottom), (new_right - new_left, new_bottom - new_top), box  # type: ignore[return-value]

    def intrinsics(self, fxfycxcy: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Intrinsics of the image before as those of the image after: a 3-D point stays on its pixel."""
        return fxfycxcy * self.scale - self.offset


def _needed(size: int, resized: int, start: int, stop: int) -> tuple[int, int, int, int]:
    """The source pixels [a, b) that pixels [start, stop) of the resized line come from, and what [a, b) becomes.

    Both are whole multiples of the smallest step that is whole before and after, so that resizing the part alone puts
    the filter on the same places.
    """
    steps = math.gcd(size, resized)
    step, new_step, ratio = size // steps, resized // steps, size / resized
    reach = _LANCZOS_REACH * max(1.0, ratio) + 1
    first = max(0, math.floor((start * ratio - reach) / step))
    last = min(steps, math.ceil((stop * ratio + reach) / step))
    return first * step, last * step, first * new_step, last * new_step


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


@functools.lru_cache
def has_fast_lanczos() -> bool:
    """Whether this torch resizes 8-bit tensors by Lanczos, as newer releases do."""
    try:
        F.interpolate(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), (1, 1), mode="lanczos", antialias=True)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def read_pixels(path: Path, where: str) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to RGB by torchvision: the pixels of `read_image`, sooner.

    What torchvision cannot read is left to `read_image`, and so is a JPEG file without its end marker at the end:
    it may be truncated, which torchvision would not say.

    Raises:
        InputError: as `read_image` does.
    """
    try:
        content = path.read_bytes()
        if not content.startswith(b"\xff\xd8") or content.rstrip(b"\0").endswith(b"\xff\xd9"):
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return torchvision.io.decode_image(data, mode=torchvision.io.ImageReadMode.RGB)
    except (OSError, ValueError, RuntimeError):
        pass
    return torch.from_numpy(to_planes(read_image(path, where)))


def to_planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    """Channels first, for torch."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
