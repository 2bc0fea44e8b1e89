"""Image and intrinsics, always changed together."""

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from data.packed import ImageFile, read_image_file
from geometry.image_size import ImageSize, sides
from utils.errors import InputError
from utils.text import printable

Box = tuple[int, int, int, int]
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
# Colours behind what is transparent, by the names of a configuration.
BACKGROUNDS: dict[str, Color] = {"white": WHITE, "black": (0, 0, 0)}

# Where the header of a PNG file has the bits a channel.
PNG_BITS = 24
# Pixels on either side that Lanczos weighs, of the coarser of the two grids.
_LANCZOS_REACH = 3

# What `open_image` and Pillow raise for what is not a whole image.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, struct.error)
# Pillow knows many more, some of which start programs (PostScript), fetch or unpack without end.
IMAGE_FORMATS = ("JPEG", "PNG")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# How HEIC files begin, after a length.
_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")
MAX_IMAGE_BYTES = 512 << 20
# Of images that are written anew; chroma is kept whole.
JPEG_QUALITY = 95
MAX_IMAGE_PIXELS = 100_000_000
# Of the longer side to the shorter one.
MAX_IMAGE_ASPECT = 16
# A JPEG has a bit or more a block of 8x8 pixels, as Huffman codes do; decoders fill in gray for what is missing.
_MAX_JPEG_PIXELS_PER_BYTE = 8 * 64
# Pillow's own bound only warns at first; `open_image` has one that holds.
Image.MAX_IMAGE_PIXELS = None


def resized_shape(width: int, height: int, image_size: ImageSize, patch_size: int) -> tuple[int, int]:
    """(width, height) after resizing such that the image just covers `image_size`.

    One side is as long as that of `image_size`, and the other, a multiple of a patch, at least as long.
    """
    rows, columns = sides(image_size)
    if rows * width < columns * height:
        new_height, new_width = resized_shape(height, width, [columns, rows], patch_size)
        return new_width, new_height
    # Rounding to patches as published; where they are small, it could lose a pixel that is needed.
    across = round(int(rows / height * width) / patch_size) * patch_size
    return max(across, columns), rows


def centred_box(width: int, height: int, image_size: ImageSize) -> Box:
    """(left, top, right, bottom) of `image_size` in the middle of an image that covers it."""
    rows, columns = sides(image_size)
    left = (width - columns) // 2
    top = (height - rows) // 2
    return left, top, left + columns, top + rows


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
        part = pixels[:, top:bottom, left:right]
        if part.shape[1:] != (height, width):
            part = F.interpolate(part[None], (height, width), mode="lanczos", antialias=True)[0]
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

    def stored_intrinsics(self, fxfycxcy: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Intrinsics of the image after as those of the image before."""
        return (fxfycxcy + self.offset) / self.scale


def _needed(size: int, resized: int, start: int, stop: int) -> tuple[int, int, int, int]:
    """The source pixels [a, b) that pixels [start, stop) of the resized line come from, and what [a, b) becomes.

    Both are whole multiples of the smallest step that is whole before and after, so that resizing the part alone puts
    the filter on the same places.
    """
    steps = math.gcd(size, resized)
    step = size // steps
    new_step = resized // steps
    ratio = size / resized
    reach = _LANCZOS_REACH * max(1.0, ratio) + 1
    first = max(0, math.floor((start * ratio - reach) / step))
    last = min(steps, math.ceil((stop * ratio + reach) / step))
    return first * step, last * step, first * new_step, last * new_step


def plan_crop(width: int, height: int, image_size: ImageSize, patch_size: int, cut: bool) -> Crop:
    """How an image of `width` x `height` is resized to cover `image_size`, and then `cut` to its middle if asked for.

    The two scale factors differ a little, since the longer side is rounded to whole patches.
    """
    resized = resized_shape(width, height, image_size, patch_size)
    box = centred_box(*resized, image_size) if cut else (0, 0, *resized)
    scale = np.array([resized[0] / width, resized[1] / height] * 2)
    return Crop(resized, box, scale, np.array([0.0, 0.0, *box[:2]]))


def open_image(source: ImageFile | bytes) -> Image.Image:
    """Open a JPEG or PNG image; only the header is decoded. The one way to images of others.

    Args:
        source: where the image lies, or the bytes of its file.

    Raises:
        IMAGE_ERRORS: there is no such file, it is not a regular one, or not an image of a format and size that is read.
    """
    content = source if isinstance(source, bytes) else read_image_file(source, MAX_IMAGE_BYTES)
    try:
        image = Image.open(BytesIO(content), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        hint = " (HEIC, as phones write it: export JPEG)" if content[4:12] in _HEIC else ""
        raise ValueError(f"not a {' or '.join(IMAGE_FORMATS)} image{hint}") from None
    check_image_size(*image.size)
    if image.format == "JPEG" and image.width * image.height > _MAX_JPEG_PIXELS_PER_BYTE * len(content):
        raise ValueError(f"{image.width}x{image.height} pixels are more than its {len(content)} bytes can hold")
    return image


def check_image_size(width: int, height: int) -> None:
    """Raises ValueError, saying the bound, for an image that is too large or too narrow."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_IMAGE_PIXELS // 10**6} million")
    if max(width, height) > MAX_IMAGE_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height} pixels are narrower than 1:{MAX_IMAGE_ASPECT}")


def has_transparency(image: Image.Image) -> bool:
    """Whether parts of an image can be seen through; a transparent colour of 16 bits a channel does not count."""
    return image.mode in ("LA", "PA", "RGBA") or ("transparency" in image.info and not _is_wide(image))


def _is_wide(image: Image.Image) -> bool:
    """Whether a channel of an image that is not decoded yet has 16 bits."""
    return image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def to_8_bits(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, or RGBA if parts can be seen through; of 16 bits a channel the upper 8 are kept.

    Raises:
        IMAGE_ERRORS: the image is not whole.
    """
    if has_transparency(image):
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        # 16-bit gray, which Pillow would clip; it takes the upper bits of 16-bit colours itself.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    image.info.pop("transparency", None)  # of 16 bits, which Pillow would compare with 8
    return image.convert("RGB")


def on_background(image: Image.Image, background: Color = WHITE) -> Image.Image:
    """An image of `to_8_bits` as RGB: colour · alpha + background · (1 - alpha), rounded to 8 bits."""
    if image.mode == "RGB":
        return image
    composite = Image.new("RGB", image.size, background)
    composite.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return composite


def to_rgb(image: Image.Image, background: Color = WHITE) -> Image.Image:
    """The image as 8-bit RGB; raises as `to_8_bits` does."""
    return on_background(to_8_bits(image), background)


def encode_pixels(pixels: UInt8[np.ndarray, "h w c"], image_format: str) -> bytes:
    """The content of an image file, `png` of 3 or 4 channels or `jpeg` of 3."""
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "png")
    else:
        image.save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def read_image(
    path: ImageFile, where: str, notes: dict[str, str] | None = None, background: Color = WHITE
) -> Image.Image:
    """Decode an image file to 8-bit RGB; raises as `read_with_alpha` does."""
    return on_background(read_with_alpha(path, where, notes), background)


def read_with_alpha(path: ImageFile, where: str, notes: dict[str, str] | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, or RGBA if parts can be seen through.

    Args:
        where: scene and frame, for the message.
        notes: gets what of the image is not used, by kind.

    Raises:
        InputError: the file is missing, truncated or not an image that is read.
    """
    try:
        with open_image(path) as image:
            _note_unused(image, where, notes)
            return to_8_bits(image)
    except FileNotFoundError:
        raise InputError(f"{where}: image not found: {printable(str(path))}") from None
    except IMAGE_ERRORS as error:
        reason = why_undecodable(error)
        raise InputError(f"{where}: image cannot be decoded: {printable(str(path))}: {reason}") from None


def _note_unused(image: Image.Image, where: str, notes: dict[str, str] | None) -> None:
    if notes is None:
        return
    if "transparency" in image.info and not has_transparency(image):
        notes.setdefault("transparency", f"{where}: the image has a transparent colour of 16 bits, which is left out")
    if "exif" in image.info and orientation(image) != 1:
        notes.setdefault("orientation", f"{where}: the image has an EXIF orientation, by which it is not turned")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none."""
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data fail in many ways and cost nothing here
        return 1
    return tag if tag in range(1, 9) else 1


def why_undecodable(error: Exception) -> str:
    """What an error of `IMAGE_ERRORS` says, in words for a message that names the file already."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return printable(text.split(" <")[0], 200)


@functools.lru_cache
def has_fast_lanczos() -> bool:
    """Whether this torch resizes 8-bit tensors by Lanczos, as newer releases do."""
    try:
        F.interpolate(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), (1, 1), mode="lanczos", antialias=True)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


@functools.cache
def fast_decoder() -> Callable[[UInt8[Tensor, "n"]], UInt8[Tensor, "3 h w"]]:
    """torchvision's decoder of the bytes of an image; raises RuntimeError for what it cannot read."""
    from torchvision.io import ImageReadMode, decode_image  # slow to import, and few commands need it

    return functools.partial(decode_image, mode=ImageReadMode.RGB)


def read_pixels(
    path: ImageFile, where: str, notes: dict[str, str] | None = None, background: Color = WHITE
) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to RGB by torchvision: the pixels of `read_image`, sooner.

    What only `read_image` reads, or what torchvision cannot, is left to it.

    Raises:
        InputError: as `read_image` does.
    """
    try:
        content = read_image_file(path, MAX_IMAGE_BYTES)
        with open_image(content) as image:
            _note_unused(image, where, notes)
            plain = is_plain(image, content)
        if plain:
            return fast_decoder()(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (*IMAGE_ERRORS, RuntimeError):
        pass  # `read_image` says what is wrong, or reads it after all
    return torch.from_numpy(to_planes(read_image(path, where, notes, background)))


def is_plain(image: Image.Image, content: bytes) -> bool:
    """Whether every decoder makes the same of the file `content` that holds `image`, or fails.

    8 bits of gray or RGB. Not a JPEG file without its end marker at the end: it may be truncated, which torchvision
    would not say.
    """
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        return content[PNG_BITS] == 8
    return content.rstrip(b"\0").endswith(b"\xff\xd9")


def to_planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    """Channels first, for torch."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
