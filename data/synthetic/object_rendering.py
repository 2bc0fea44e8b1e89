"""Pictures of objects with alpha: light baked into one image of all surfaces, and rays that look it up.

The light that reaches a point of a surface is a sum over directions spread evenly over the sphere, those left out in
which another solid stands: a sky, brighter above than below, and a soft lamp in one direction. It does not depend on
where the camera is. The alpha of a pixel is the share of its rays that meet the object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data.synthetic.furniture import lay
from data.synthetic.rendering import Pinhole
from data.synthetic.solids import Solid, Vector

# Lengths are in units of the world, in which objects have a radius of about 1.
_LIGHT_CELL = 0.1
_MOST_CELLS = 32
_LARGEST_TEXTURE = 2048
_DIRECTIONS = 40
# How far above its surface a point stands when it looks for light.
_LIFT = 0.012
# Cosines below it carry no light worth a ray.
_GRAZING = 0.03
# The power of the cosine to its middle by which the lamp fades.
_LAMP_SHARPNESS = 10
# Light that gets everywhere.
_LEAST_LIGHT = 0.22
# Of 255 levels, the one that stands for light that leaves a colour as it is.
_ONE = 160
_BORDER = 1
# Rows of the image of all surfaces: OpenCV looks up no larger ones than 32767.
_LONGEST_COLUMN = 16000
_OUTSIDE = -9.0

Box = tuple[slice, slice]
# Origin and directions.
Rays = tuple[Vector, Vector]


@dataclass(frozen=True)
class BakedObject:
    """An object ready to render.

    Attributes:
        solids: what it is composed of.
        texture: all its surfaces, lit, in columns; transparent between them.
        places: of every solid's patches, left, top, width and height there.
    """

    solids: Sequence[Solid]
    texture: UInt8[np.ndarray, "h w 4"]
    places: list[Float[np.ndarray, "p 4"]]


@dataclass(frozen=True)
class Light:
    """A sky and a lamp.

    Attributes:
        sky: brightness of its middle, and how much brighter it is straight above.
        lamp: direction towards the lamp, a unit vector.
        strength: of the lamp, on a surface that faces it.
        tint: colour of the lamp, RGB about 1.
    """

    sky: tuple[float, float]
    lamp: Float[np.ndarray, "3"]
    strength: float
    tint: Float[np.ndarray, "3"]


def draw_light(rng: np.random.Generator) -> Light:
    """A bright sky, and a lamp somewhere above."""
    azimuth = rng.uniform(0, 2 * np.pi)
    height = rng.uniform(0.35, 0.95)
    across = np.sqrt(1 - height**2)
    tint = rng.uniform(-0.05, 0.08)
    return Light(
        sky=(rng.uniform(0.72, 0.95), rng.uniform(0.1, 0.25)),
        lamp=np.array([across * np.cos(azimuth), across * np.sin(azimuth), height]),
        strength=rng.uniform(0.15, 0.55),
        tint=np.array([1 + tint, 1, 1 - tint]),
    )


# ---------------------------------------------------------------- light and texture


@dataclass(frozen=True)
class _Patch:
    """A patch of a solid: its size in the world, its image's (width, height), and points over it with normals."""

    solid: Solid
    number: int
    lengths: Float[np.ndarray, "2"]
    size: tuple[int, int]
    points: Float[np.ndarray, "rows columns 3"]
    normals: Float[np.ndarray, "rows columns 3"]


def bake(solids: Sequence[Solid], light: Light, rng: np.random.Generator, texel: float) -> BakedObject:
    """Lay the materials over the surfaces, and light them.

    Args:
        rng: where patterns begin.
        texel: size of a texel in units of the world.
    """
    patches = [_measure(solid, number, texel) for solid in solids for number in solid.shape.patches]
    grids = _light_on(solids, patches, light)
    images = [_lit(patch, grid, rng) for patch, grid in zip(patches, grids, strict=True)]
    texture, corners = _stack(images)
    places = {id(solid): np.zeros((max(solid.shape.patches) + 1, 4), np.float32) for solid in solids}
    for patch, corner in zip(patches, corners, strict=True):
        places[id(patch.solid)][patch.number] = (*corner, *patch.size)
    return BakedObject(solids, texture, [places[id(solid)] for solid in solids])


def _stack(images: Sequence[UInt8[np.ndarray, "_ _ 4"]]) -> tuple[UInt8[np.ndarray, "h w 4"], list[tuple[int, int]]]:
    """Images as one, below one another in columns; left and top of each there, inside its border."""
    corners = []
    left = top = right = 0
    for image in images:
        if top + image.shape[0] > _LONGEST_COLUMN:
            left = right
            top = 0
        corners.append((left, top))
        top += image.shape[0]
        right = max(right, left + image.shape[1])
    height = max(top + image.shape[0] for (_, top), image in zip(corners, images, strict=True))
    texture = np.zeros((height, right, 4), np.uint8)
    for (left, top), image in zip(corners, images, strict=True):
        texture[top : top + image.shape[0], left : left + image.shape[1]] = image
    return texture, [(left + _BORDER, top + _BORDER) for left, top in corners]


def _measure(solid: Solid, number: int, texel: float) -> _Patch:
    u, v = np.meshgrid(np.linspace(0, 1, 17), np.linspace(0, 1, 9))
    points, _ = solid.surface(number, u, v)
    lengths = np.array([_longest(points, axis=1), _longest(points, axis=0)])
    width, height = (int(n) for n in np.clip(np.round(lengths / texel), 2, _LARGEST_TEXTURE))
    columns, rows = (int(n) + 1 for n in np.clip(np.ceil(lengths / _LIGHT_CELL), 2, _MOST_CELLS))
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    return _Patch(solid, number, lengths, (width, height), *solid.surface(number, u, v))


def _longest(points: Float[np.ndarray, "a b 3"], axis: int) -> float:
    """Length of the longest line of points along an axis."""
    steps = np.linalg.norm(np.diff(points, axis=axis), axis=-1)
    return float(steps.sum(axis=axis).max())


def _lit(
    patch: _Patch, light: Float[np.ndarray, "rows columns 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 4"]:
    """The image of a patch with a border that repeats its edge."""
    texture = lay(rng, patch.solid.material, _laid_lengths(patch), *patch.size)
    image = cv2.multiply(texture, _shade(light, *patch.size), scale=1 / _ONE)
    return cv2.copyMakeBorder(image, *(_BORDER,) * 4, borderType=cv2.BORDER_REPLICATE)


def _laid_lengths(patch: _Patch) -> Float[np.ndarray, "2"]:
    """The size over which its pattern is laid: it goes around a whole number of times, so that it has no seam."""
    metres = patch.solid.material.metres
    if metres is None or not patch.solid.shape.closes:
        return patch.lengths
    return np.array([max(1, round(patch.lengths[0] / metres)) * metres, patch.lengths[1]])


def _shade(light: Float[np.ndarray, "rows columns 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 4"]:
    """Light at the nodes of a grid, the outer ones on the edges of an image, at its texels; `_ONE` leaves colours."""
    rows, columns = light.shape[:2]
    levels = np.full((rows, columns, 4), _ONE, np.uint8)
    levels[..., :3] = np.clip(np.round(_ONE * light), 0, 255)
    x = (columns - 1) / width
    y = (rows - 1) / height
    matrix = np.array([[x, 0, x / 2], [0, y, y / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(levels, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _light_on(
    solids: Sequence[Solid], patches: Sequence[_Patch], light: Light
) -> list[Float[np.ndarray, "rows columns 3"]]:
    """RGB factors at the points of patches."""
    points = np.concatenate([patch.points.reshape(-1, 3) for patch in patches])
    normals = np.concatenate([patch.normals.reshape(-1, 3) for patch in patches])
    factors = np.split(
        shine(solids, points, normals, light), np.cumsum([patch.points.size // 3 for patch in patches])[:-1]
    )
    return [factor.reshape(patch.points.shape) for factor, patch in zip(factors, patches, strict=True)]


def shine(
    solids: Sequence[Solid], points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], light: Light
) -> Float[np.ndarray, "n 3"]:
    """The light, as an RGB factor, that reaches points of surfaces between solids."""
    directions = _spread_directions(_DIRECTIONS)
    cosines = normals @ directions.T
    cosines[cosines < _GRAZING] = 0
    sky = light.sky[0] + light.sky[1] * directions[:, 2]
    lamp = np.maximum(directions @ light.lamp, 0) ** _LAMP_SHARPNESS
    point, direction = np.nonzero(cosines)
    open_ = np.zeros_like(cosines)
    lifted = (points + _LIFT * normals).astype(np.float32)
    open_[point, direction] = ~occluded(solids, lifted[point], directions.astype(np.float32)[direction])
    from_sky = (open_ * cosines) @ sky / np.maximum(cosines.sum(axis=1), _GRAZING)
    from_lamp = (open_ * cosines) @ lamp / lamp.sum()
    return np.maximum(from_sky, _LEAST_LIGHT)[:, None] + light.strength * from_lamp[:, None] * light.tint


def _spread_directions(count: int) -> Float[np.ndarray, "k 3"]:
    """Unit vectors spread evenly: points of a spiral at heights that divide the sphere into equal areas."""
    z = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], axis=1)


def occluded(
    solids: Sequence[Solid], points: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, "n"]:
    """Whether rays from points meet a solid or begin in one."""
    dark = np.zeros(len(points), bool)
    for solid in solids:
        light = np.flatnonzero(~dark)
        origin = np.ascontiguousarray(solid.local_points(points[light]).T)
        direction = np.ascontiguousarray(solid.local_directions(directions[light]).T)
        dark[light] = np.isfinite(solid.shape.hit(tuple(origin), tuple(direction), 0.0))
    return dark


# ---------------------------------------------------------------- pictures


def cast_object(solids: Sequence[Solid], camera: Pinhole) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Number of the solid at every pixel centre (-1 where there is none) and its depth along z (inf there)."""
    owner = np.full((camera.height, camera.width), -1, np.int16)
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    for number, solid in enumerate(solids):
        box = _screen_box(solid, camera)
        t = solid.shape.hit(*_local_rays(solid, camera, box), 0.0)
        nearer = t < depth[box]
        depth[box][nearer] = t[nearer]
        owner[box][nearer] = number
    return owner, depth


def render_object(baked: BakedObject, camera: Pinhole, supersample: int = 3) -> UInt8[np.ndarray, "h w 4"]:
    """The picture that a camera sees, RGBA: colours are not multiplied by alpha, and white where that is 0.

    Casts `supersample`² rays a pixel, on a regular grid.
    """
    fine = camera.finer(supersample)
    owner, depth = cast_object(baked.solids, fine)
    x = np.full((fine.height, fine.width), _OUTSIDE, np.float32)
    y = x.copy()
    for number, solid in enumerate(baked.solids):
        box = _screen_box(solid, fine)
        mine = owner[box] == number
        if mine.any():
            x[box][mine], y[box][mine] = _lookup(baked, number, _local_rays(solid, fine, box), depth[box], mine)
    samples = cv2.remap(baked.texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return _unmultiplied(cv2.resize(samples, (camera.width, camera.height), interpolation=cv2.INTER_AREA))


def _lookup(
    baked: BakedObject,
    number: int,
    rays: Rays,
    depth: Float[np.ndarray, "h w"],
    mine: Bool[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Columns and rows of the texture where the samples of a solid are."""
    t = depth[mine]
    points = np.stack([start + t * along[mine] for start, along in zip(*rays, strict=True)], axis=1)
    patch, u, v = baked.solids[number].shape.locate(points)
    left, top, width, height = baked.places[number][patch].T
    return left + np.clip(u, 0, 1) * width - 0.5, top + np.clip(v, 0, 1) * height - 0.5


def _local_rays(solid: Solid, camera: Pinhole, box: Box) -> Rays:
    """Origin and directions of the rays of a part of the picture in the frame of a solid's shape."""
    rows, columns = box
    fx, fy, cx, cy = camera.fxfycxcy
    x = (np.arange(columns.start, columns.stop) + 0.5 - cx) / fx
    y = (np.arange(rows.start, rows.stop) + 0.5 - cy) / fy
    axes = solid.local_directions(camera.c2w[:3, :3].T).T
    origin = solid.local_points(camera.c2w[:3, 3]).astype(np.float32)
    directions = (
        a * x.astype(np.float32) + (b * y + c).astype(np.float32)[:, None] for a, b, c in axes.astype(np.float32)
    )
    return tuple(origin), tuple(directions)


def _screen_box(solid: Solid, camera: Pinhole) -> Box:
    """Rows and columns that a solid can cover."""
    x, y, z = ((solid.corners - camera.c2w[:3, 3]) @ camera.c2w[:3, :3]).T
    if z.min() <= 0:
        return slice(0, camera.height), slice(0, camera.width)
    fx, fy, cx, cy = camera.fxfycxcy
    return _interval(fy * y / z + cy, camera.height), _interval(fx * x / z + cx, camera.width)


def _interval(places: Float[np.ndarray, "n"], size: int) -> slice:
    first, last = np.clip([np.floor(places.min()), np.ceil(places.max())], 0, size).astype(int)
    return slice(int(first), int(last))


def _unmultiplied(image: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    """Colours that alpha has not been multiplied into."""
    alpha = image[..., 3]
    edge = (alpha > 0) & (alpha < 255)
    shares = image[edge].astype(np.float32)
    image[edge, :3] = np.minimum(np.round(255 * shares[:, :3] / shares[:, 3:]), 255)
    image[alpha == 0, :3] = 255
    return image
