"""The size of images as a configuration gives it: one number for squares, or [height, width]."""

from typing import TypeGuard

from utils.text import counted

# In pixels.
ImageSize = int | list[int]


def sides(size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def is_size(value: object) -> TypeGuard[ImageSize]:
    """Whether a value that comes from a file is such a size."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def size_text(size: ImageSize) -> str:
    """A size for messages, as a configuration has it: 256, or [256, 448]."""
    height, width = sides(size)
    return f"{height}" if height == width else f"[{height}, {width}]"


def size_fault(size: ImageSize, patch_size: int) -> str | None:
    """Why images of this size are no whole number of patches, in words that follow the key; None if they are."""
    if isinstance(size, list) and len(size) != 2:
        return f"has {counted(len(size), 'number')}: write one for squares, or [height, width]"
    cut = [side for side in sides(size) if side % patch_size]
    if not cut:
        return None
    least = max(1, cut[0] // patch_size) * patch_size
    return f"is {size_text(size)}, and {cut[0]} is no multiple of patch_size ({patch_size}): {least} is"
