"""Textures of the procedural rooms: repeating patterns in two colours, and crops of photographs.

Every image is uint8 RGB. Patterns are square and periodic, so that they tile without a seam. The photographs
ship inside the scikit-image package and are read from its folder: nothing is ever downloaded.
"""

import colorsys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage
from jaxtyping import Float, UInt8
from PIL import Image

PATTERN_SIZE = 256
PHOTOS = (
    "astronaut.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
_PHOTO_PATTERNS = {"brick photo": "brick.png", "grass photo": "grass.png", "gravel photo": "gravel.png"}
_VARIANTS = 4  # every pattern has this many fixed variants, computed once per process

Grey = Float[np.ndarray, "n n"]


@cache
def _read(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A photograph of the scikit-image package, at most 512 pixels on its longer side."""
    path = Path(skimage.__file__).parent / "data" / name
    # Not `open_image`: a package's own picture is trusted, and worker processes start without torch.
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((512, 512))
    return np.asarray(image)


def photo_crop(rng: np.random.Generator, aspect: float) -> UInt8[np.ndarray, "h w 3"]:
    """A random crop of a random photograph with width / height equal to ``aspect``, sometimes mirrored."""
    image = _read(str(rng.choice(PHOTOS)))
    full_h, full_w = image.shape[:2]
    height = min(full_h, full_w / aspect) * rng.uniform(0.55, 1.0)
    h = max(1, int(height))
    w = max(1, int(height * aspect))
    top = rng.integers(0, full_h - h + 1)
    left = rng.integers(0, full_w - w + 1)
    crop = image[top : top + h, left : left + w]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


# ---------------------------------------------------------------- grey patterns, periodic, values in [0, 1]


def _grid() -> tuple[Grey, Grey]:
    """Coordinates x, y in [0, 1) of the texels of a pattern."""
    axis = (np.arange(PATTERN_SIZE) + 0.5) / PATTERN_SIZE
    x, y = np.meshgrid(axis, axis)
    return x, y


def _noise(rng: np.random.Generator, slope: float = 1.5, stretch: float = 1.0) -> Grey:
    """Periodic noise with amplitude spectrum 1/frequency^slope; ``stretch`` > 1 makes streaks along x."""
    fx = np.fft.rfftfreq(PATTERN_SIZE)[None] * stretch
    fy = np.fft.fftfreq(PATTERN_SIZE)[:, None]
    amplitude = (np.hypot(fx, fy) + 2.0 / PATTERN_SIZE) ** -slope
    spectrum = np.fft.rfft2(rng.standard_normal((PATTERN_SIZE, PATTERN_SIZE)))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum * amplitude)
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1)


def _cells(rng: np.random.Generator, rows: int, columns: int, shift: float, joint: float) -> tuple[Grey, Grey]:
    """A running bond: a random value for every cell, and 1 in the joints between the cells (else 0)."""
    x, y = _grid()
    row = np.floor(y * rows).astype(int)
    along = x * columns + shift * row
    column = np.floor(along).astype(int) % columns
    value = rng.random((rows, columns))[row, column]
    gap_x = np.minimum(along % 1, 1 - along % 1) / columns
    gap_y = np.minimum((y * rows) % 1, 1 - (y * rows) % 1) / rows
    return value, (np.minimum(gap_x, gap_y) < joint).astype(float)


def _checker(rng: np.random.Generator) -> Grey:
    x, y = _grid()
    n = int(rng.choice([2, 4, 6]))
    return 0.85 * ((np.floor(x * n) + np.floor(y * n)) % 2) + 0.15 * _noise(rng)


def _stripes(rng: np.random.Generator) -> Grey:
    x, _ = _grid()
    n = int(rng.choice([3, 5, 8]))
    wave = np.sin(2 * np.pi * n * x) + 0.6 * np.sin(2 * np.pi * x + rng.uniform(0, 6))
    return 0.8 / (1 + np.exp(-8 * wave)) + 0.2 * _noise(rng)


def _wood(rng: np.random.Generator) -> Grey:
    _, y = _grid()
    rings = np.sin(2 * np.pi * (6 * y + 2.5 * _noise(rng, 2.0, 4.0)))
    return np.clip(0.5 + 0.2 * rings + 0.7 * (_noise(rng, 0.9, 12.0) - 0.5), 0, 1)


def _planks(rng: np.random.Generator) -> Grey:
    value, joint = _cells(rng, rows=8, columns=2, shift=0.5, joint=0.004)
    grain = 0.35 * _wood(rng) + 0.25 * _noise(rng, 1.0, 10.0)
    return (0.15 + 0.4 * value + grain) * (1 - 0.75 * joint)


def _bricks(rng: np.random.Generator) -> Grey:
    value, joint = _cells(rng, rows=10, columns=4, shift=0.5, joint=0.009)
    return np.where(joint > 0, 0.9, 0.15 + 0.35 * value + 0.3 * _noise(rng, 1.0))


def _tiles(rng: np.random.Generator) -> Grey:
    value, joint = _cells(rng, rows=4, columns=4, shift=0.0, joint=0.005)
    return np.where(joint > 0, 0.1, 0.5 + 0.25 * value + 0.3 * _noise(rng))


def _plaster(rng: np.random.Generator) -> Grey:
    return np.clip(0.5 + 0.5 * (_noise(rng, 1.1) - 0.5) + 0.5 * (_noise(rng, 2.0) - 0.5), 0, 1)


def _weave(rng: np.random.Generator) -> Grey:
    x, y = _grid()
    threads = np.sin(2 * np.pi * 24 * x) * np.sin(2 * np.pi * 24 * y)
    return np.clip(0.5 + 0.25 * threads + 0.6 * (_noise(rng) - 0.5), 0, 1)


def _dots(rng: np.random.Generator) -> Grey:
    x, y = _grid()
    n = int(rng.choice([4, 6]))
    wave = np.cos(2 * np.pi * n * x) + np.cos(2 * np.pi * n * y)
    return 0.8 / (1 + np.exp(-9 * (wave - 0.8))) + 0.2 * _noise(rng)


def _diamonds(rng: np.random.Generator) -> Grey:
    x, y = _grid()
    n = int(rng.choice([2, 3, 4]))
    wave = np.cos(2 * np.pi * n * (x + y)) * np.cos(2 * np.pi * n * (x - y))
    return 0.75 / (1 + np.exp(-10 * wave)) + 0.25 * _noise(rng)


def _mirrored_photo(name: str) -> Grey:
    """A photograph of a surface, mirrored in both directions so that it is periodic."""
    grey = _read(name)[..., 0].astype(np.float64)
    half = cv2.resize(grey, (PATTERN_SIZE // 2,) * 2, interpolation=cv2.INTER_AREA)
    half = (half - half.min()) / (half.max() - half.min())
    row = np.concatenate([half, half[:, ::-1]], axis=1)
    return np.concatenate([row, row[::-1]], axis=0)


_PATTERNS: dict[str, Callable[[np.random.Generator], Grey]] = {
    "checker": _checker,
    "stripes": _stripes,
    "wood": _wood,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "plaster": _plaster,
    "weave": _weave,
    "dots": _dots,
    "diamonds": _diamonds,
}
PATTERN_NAMES = (*_PATTERNS, *_PHOTO_PATTERNS)


@cache
def _pattern(name: str, variant: int, size: int) -> UInt8[np.ndarray, "n n"]:
    if name in _PHOTO_PATTERNS:
        grey = _mirrored_photo(_PHOTO_PATTERNS[name])
    else:
        grey = _PATTERNS[name](np.random.default_rng([PATTERN_NAMES.index(name), variant]))
    grey = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(np.round(255 * grey), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- colour


def hsv(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    """RGB in 0..255 of a colour given by hue (in turns), saturation and value (in 0..1)."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def pattern(
    rng: np.random.Generator,
    name: str,
    dark: Float[np.ndarray, "3"],
    light: Float[np.ndarray, "3"],
    size: int = PATTERN_SIZE,
) -> UInt8[np.ndarray, "n n 3"]:
    """The named periodic pattern, coloured from ``dark`` (where it is 0) to ``light`` (where it is 1)."""
    table = dark + np.linspace(0, 1, 256)[:, None] * (light - dark)
    return np.clip(np.round(table), 0, 255).astype(np.uint8)[_pattern(name, int(rng.integers(_VARIANTS)), size)]


def pyramid(image: UInt8[np.ndarray, "h w c"]) -> list[UInt8[np.ndarray, "_ _ c"]]:
    """The image and its halvings (area averages) down to a side of about two texels."""
    levels = [image]
    while min(levels[-1].shape[:2]) >= 4:
        h, w = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((w + 1) // 2, (h + 1) // 2), interpolation=cv2.INTER_AREA))
    return levels
