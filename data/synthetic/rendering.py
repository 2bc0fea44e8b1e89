"""Ray casting of textured rectangles seen by a pinhole camera.

A point of a rectangle is ``origin + s * edge_u + t * edge_v`` with s, t in [0, 1]. With the camera at the
origin, the ray of a pixel is d = ((x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1), so depth along d is depth along z.
Cramer's rule on ``depth * d = O + s * U + t * V`` gives three functions that are affine in (x, y):

    W = 1 / depth = d . (U x V) / c,   S = s / depth = d . (V x O) / c,   T = t / depth = d . (O x U) / c,

with c = O . (U x V). A rectangle is seen from the side where c > 0. So it covers the pixels with S >= 0,
T >= 0, W - S >= 0 and W - T >= 0 (together they imply W >= 0: a face that crosses the camera plane needs no
clipping), every row of pixels is cut to one interval by these half-planes, the nearest face has the greatest
W, and a texture is looked up at (S / W, T / W), which is a homography.

Texture detail is chosen by footprint, which on one plane depends on W alone: a face is drawn in bands of W,
one for each mip level.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from data.synthetic.textures import pyramid

TextureLevels = list[UInt8[np.ndarray, "_ _ 4"]]

# Texels per sample are (along lines of equal depth) ~ W^-1 and (across them) ~ W^-2; the level follows the
# geometric mean of the two with this weight on the second. 1 never aliases and blurs slanted faces.
_ACROSS_WEIGHT = 0.75
_ONE_LEVEL = 0.8  # octaves of footprint over a face up to which it is drawn from a single level
_EDGE_TOLERANCE = 1e-6  # samples; neighbouring faces overlap by this much, so that no sample falls between them
_NEARLY_ZERO = 1e-6  # metres
_BORDER = 1  # texels


@dataclass(frozen=True)
class Faces:
    """Rectangles in the world. Row i is the set of points ``origin[i] + s * edge_u[i] + t * edge_v[i]``.

    Seen from its visible side, ``edge_u`` points right and ``edge_v`` down; ``edge_u x edge_v`` points away.
    ``textures[i]`` is a mip pyramid as ``texture_levels`` makes it.
    """

    origin: Float[np.ndarray, "f 3"]
    edge_u: Float[np.ndarray, "f 3"]
    edge_v: Float[np.ndarray, "f 3"]
    textures: list[TextureLevels]


@dataclass(frozen=True)
class Pinhole:
    """A pinhole camera in the world; ``fxfycxcy``, ``width`` and ``height`` are in pixels of its picture."""

    c2w: Float[np.ndarray, "4 4"]
    fxfycxcy: Float[np.ndarray, "4"]
    width: int
    height: int

    def finer(self, times: int) -> "Pinhole":
        """The same camera with ``times`` as many pixels a side."""
        return Pinhole(self.c2w, self.fxfycxcy * times, self.width * times, self.height * times)


@dataclass(frozen=True)
class _View:
    """Faces that may be visible, as affine functions (a, b, k) of integer sample coordinates: a*x + b*y + k."""

    index: Int[np.ndarray, "m"]
    inv_depth: Float[np.ndarray, "m 3"]
    s: Float[np.ndarray, "m 3"]
    t: Float[np.ndarray, "m 3"]
    corner_z: Float[np.ndarray, "m 4"]


@dataclass(frozen=True)
class _Fragments:
    """Parts of faces that are drawn from one mip level, each with an interval of columns in every row."""

    face: Int[np.ndarray, "k"]  # row of the _View
    level: Int[np.ndarray, "k"]
    first: Float[np.ndarray, "k h"]
    last: Float[np.ndarray, "k h"]


def texture_levels(image: UInt8[np.ndarray, "h w 4"]) -> TextureLevels:
    """Mip pyramid of a texture, every level with a border of one texel that repeats its edge.

    Both the border and the fourth channel, which nothing else uses, are there for speed: OpenCV warps four
    channels several times faster than three, and is slow where it has to repeat an edge itself.
    """
    border = (_BORDER,) * 4
    return [cv2.copyMakeBorder(level, *border, borderType=cv2.BORDER_REPLICATE) for level in pyramid(image)]


def cast(faces: Faces, camera: Pinhole) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Index of the face at every pixel centre (-1 where there is none) and its depth along z (inf there)."""
    view = _project(faces, camera)
    fragments = _whole_faces(view, camera.width, camera.height)
    owner, inv_depth = _visibility(view, fragments, camera.width, camera.height)
    face = np.append(view.index[fragments.face], -1)[owner]
    with np.errstate(divide="ignore"):
        return face, 1.0 / inv_depth


def render(faces: Faces, camera: Pinhole, supersample: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """The picture a camera sees, RGB; black where there is no face.

    Casts ``supersample``² rays a pixel, on a regular grid, and averages them.
    """
    fine = camera.finer(supersample)
    view = _project(faces, fine)
    fragments = _mip_bands(faces, view, _whole_faces(view, fine.width, fine.height), fine.width, fine.height)
    owner, _ = _visibility(view, fragments, fine.width, fine.height)
    image = _shade(faces, view, fragments, owner)
    if supersample > 1:
        image = cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)


# ---------------------------------------------------------------- from faces to affine functions


def _project(faces: Faces, camera: Pinhole) -> _View:
    c2w = np.asarray(camera.c2w, np.float64)
    fx, fy, cx, cy = map(float, camera.fxfycxcy)
    rotation = c2w[:3, :3]
    o = (faces.origin - c2w[:3, 3]) @ rotation
    u = faces.edge_u @ rotation
    v = faces.edge_v @ rotation
    normal = np.cross(u, v)
    facing = np.einsum("fi,fi->f", o, normal)
    corners = np.stack([o, o + u, o + v, o + u + v], axis=1)
    size = np.linalg.norm(normal, axis=1)
    index = np.flatnonzero((facing > _NEARLY_ZERO * size) & _in_frustum(corners, camera))
    o = o[index]
    u = u[index]
    v = v[index]
    c = facing[index, None]

    def on_screen(g: np.ndarray) -> np.ndarray:
        a = g[:, 0] / fx
        b = g[:, 1] / fy
        return np.stack([a, b, g[:, 2] + a * (0.5 - cx) + b * (0.5 - cy)], axis=1)

    inv_depth, s, t = (on_screen(g / c) for g in (normal[index], np.cross(v, o), np.cross(o, u)))
    return _View(index, inv_depth, s, t, corners[index, :, 2])


def _in_frustum(corners: np.ndarray, camera: Pinhole) -> np.ndarray:
    """False for faces whose four corners lie outside one plane of the viewing frustum."""
    fx, fy, cx, cy = map(float, camera.fxfycxcy)
    x, y, z = np.moveaxis(corners, -1, 0)
    right = (camera.width - cx) * z - fx * x
    below = (camera.height - cy) * z - fy * y
    sides = (z, fx * x + cx * z, right, fy * y + cy * z, below)
    return np.all([(side > 0).any(axis=1) for side in sides], axis=0)


# ---------------------------------------------------------------- which samples a face covers


def _cut(planes: Float[np.ndarray, "k 3"], first: Float[np.ndarray, "k h"], last: Float[np.ndarray, "k h"]) -> None:
    """Shrink the interval [first, last] of columns of every row, in place, to where a*x + b*y + k >= 0."""
    rows = np.arange(first.shape[1])
    a, b, k = planes.T[..., None]
    upright = np.abs(a) > 1e-14
    slope, offset = np.divide([-b, -k], a, where=upright, out=np.zeros((2, *a.shape)))
    part = np.flatnonzero(a > 1e-14)
    first[part] = np.maximum(first[part], np.ceil(slope[part] * rows + (offset[part] - _EDGE_TOLERANCE)))
    part = np.flatnonzero(a < -1e-14)
    last[part] = np.minimum(last[part], np.floor(slope[part] * rows + (offset[part] + _EDGE_TOLERANCE)))
    part = np.flatnonzero(~upright)
    last[part] = np.where(b[part] * rows + k[part] < -_EDGE_TOLERANCE * np.abs(b[part]), -1.0, last[part])


def _whole_faces(view: _View, width: int, height: int) -> _Fragments:
    count = len(view.index)
    first = np.zeros((count, height))
    last = np.full((count, height), width - 1.0)
    for plane in (view.s, view.inv_depth - view.s, view.t, view.inv_depth - view.t):
        _cut(plane, first, last)
    return _Fragments(np.arange(count), np.zeros(count, int), first, last)


def _mip_bands(faces: Faces, view: _View, whole: _Fragments, width: int, height: int) -> _Fragments:
    """Cut every face into the bands of inverse depth that share a mip level."""
    scale = _level_scale(faces, view)
    nearest, farthest = _inv_depth_range(view, width, height)
    levels = np.array([len(faces.textures[i]) for i in view.index], int) - 1

    low, high = (np.log2(scale * np.maximum(w, 1e-9) ** -(1 + _ACROSS_WEIGHT)) for w in (nearest, farthest))
    # a face with little change of detail needs no bands
    low, high = np.where(high - low < _ONE_LEVEL, (low + high) / 2, (low, high))
    low, high = (np.clip(np.round(level), 0, levels).astype(int) for level in (low, high))
    face = np.repeat(np.arange(len(low)), high - low + 1)
    level = np.concatenate([np.arange(a, b + 1) for a, b in zip(low, high, strict=True)] or [np.zeros(0, int)])
    nearer = np.where(level > low[face], _band_edge(scale[face], level - 0.5), np.inf)
    farther = np.where(level < high[face], _band_edge(scale[face], level + 0.5), -np.inf)
    return _cut_bands(view, whole, face, level, nearer, farther)


def _band_edge(scale: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Inverse depth at which the footprint is 2^level texels."""
    return (scale / 2.0**level) ** (1 / (1 + _ACROSS_WEIGHT))


def _cut_bands(
    view: _View, whole: _Fragments, face: np.ndarray, level: np.ndarray, nearer: np.ndarray, farther: np.ndarray
) -> _Fragments:
    first = whole.first[face]
    last = whole.last[face]
    for bound, sign in ((nearer, -1.0), (farther, 1.0)):
        part = np.flatnonzero(np.isfinite(bound))
        plane = sign * (view.inv_depth[face[part]] - bound[part, None] * np.array([0.0, 0.0, 1.0]))
        part_first = first[part]
        part_last = last[part]
        _cut(plane, part_first, part_last)
        first[part] = part_first
        last[part] = part_last
    return _Fragments(face, level, first, last)


def _level_scale(faces: Faces, view: _View) -> Float[np.ndarray, "m"]:
    """Texels a sample covers at inverse depth 1 (see the head of this file); at W it is this * W^-(1 + weight)."""
    sizes = np.array([faces.textures[i][0].shape[1::-1] for i in view.index], float).reshape(-1, 2) - 2 * _BORDER
    s = view.s * sizes[:, :1]
    t = view.t * sizes[:, 1:]
    w = view.inv_depth
    slope = np.hypot(w[:, 0], w[:, 1])
    level = np.stack([-w[:, 1], w[:, 0]], axis=1) / np.maximum(slope, 1e-12)[:, None]
    level[slope < 1e-12] = (1.0, 0.0)
    along = np.hypot(np.sum(s[:, :2] * level, axis=1), np.sum(t[:, :2] * level, axis=1))
    determinant = np.abs(np.linalg.det(np.stack([s, t, w], axis=1))) if len(s) else np.zeros(0)
    across = determinant / np.maximum(along, 1e-12)
    return np.maximum(along ** (1 - _ACROSS_WEIGHT) * across**_ACROSS_WEIGHT, 1e-12)


def _inv_depth_range(view: _View, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (nearest, farthest) of the inverse depth that can show on the screen, from corners of both."""
    screen = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], float)
    on_screen = view.inv_depth @ screen.T
    behind = (view.corner_z <= _NEARLY_ZERO).any(axis=1)
    corners = 1.0 / np.maximum(view.corner_z, _NEARLY_ZERO)
    nearest = np.minimum(on_screen.max(axis=1), np.where(behind, np.inf, corners.max(axis=1)))
    farthest = np.maximum(on_screen.min(axis=1), np.where(view.corner_z > _NEARLY_ZERO, corners, np.inf).min(axis=1))
    return nearest, np.minimum(farthest, nearest)


# ---------------------------------------------------------------- drawing


def _boxes(fragments: _Fragments) -> list[tuple[int, slice, slice]]:
    """For every fragment with a sample: its number, its range of rows and its range of columns."""
    filled = fragments.last >= fragments.first
    used = np.flatnonzero(filled.any(axis=1))
    top = filled[used].argmax(axis=1)
    bottom = filled.shape[1] - filled[used, ::-1].argmax(axis=1)
    left = np.where(filled[used], fragments.first[used], np.inf).min(axis=1).astype(int)
    right = np.where(filled[used], fragments.last[used], -1).max(axis=1).astype(int) + 1
    boxes = zip(used.tolist(), top.tolist(), bottom.tolist(), left.tolist(), right.tolist(), strict=True)
    return [(k, slice(r0, r1), slice(c0, c1)) for k, r0, r1, c0, c1 in boxes]


def _visibility(
    view: _View, fragments: _Fragments, width: int, height: int
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Number of the nearest fragment at every sample (-1: none), and its inverse depth (0 there)."""
    owner = np.full((height, width), -1, np.int16)
    nearest = np.zeros((height, width), np.float32)
    columns = np.arange(width, dtype=np.uint16)
    a, b, c = view.inv_depth[fragments.face].T[..., None]
    along_x = (a * np.arange(width)).astype(np.float32)
    along_y = (b * np.arange(height) + c).astype(np.float32)
    first = np.minimum(fragments.first, width).astype(np.uint16)
    length = np.maximum(fragments.last - fragments.first + 1, 0).astype(np.uint16)
    for k, rows, cols in _boxes(fragments):
        # uint16 wraps below the first column, so one comparison tests both ends of the interval
        inside = (columns[cols] - first[k, rows, None]) < length[k, rows, None]
        inv_depth = along_x[k, cols] + along_y[k, rows, None]
        inside &= inv_depth > nearest[rows, cols]
        cv2.copyTo(inv_depth, inside.view(np.uint8), nearest[rows, cols])
        np.copyto(owner[rows, cols], k, where=inside)
    return owner, nearest


def _shade(
    faces: Faces, view: _View, fragments: _Fragments, owner: Int[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 4"]:
    """Look the textures up at every sample."""
    image = np.zeros((*owner.shape, 4), np.uint8)
    homographies = _sample_to_texel(faces, view, fragments)
    for k, rows, cols in _boxes(fragments):
        mask = (owner[rows, cols] == k).view(np.uint8)
        left, top, w, h = cv2.boundingRect(mask)  # what other faces do not hide may be much smaller
        if not w:
            continue
        homography = homographies[k].copy()
        homography[:, 2] += homography[:, :2] @ (cols.start + left, rows.start + top)
        texture = faces.textures[view.index[fragments.face[k]]][fragments.level[k]]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpPerspective(texture, homography, (w, h), flags=flags, borderMode=cv2.BORDER_CONSTANT)
        target = image[rows, cols][top : top + h, left : left + w]
        cv2.copyTo(patch, mask[top : top + h, left : left + w], target)
    return image


def _sample_to_texel(faces: Faces, view: _View, fragments: _Fragments) -> Float[np.ndarray, "k 3 3"]:
    """Homography of every fragment from sample (x, y) to its texel coordinates, texel centres at integers."""
    textures = [faces.textures[view.index[face]] for face in fragments.face]
    shapes = [levels[level].shape[1::-1] for levels, level in zip(textures, fragments.level, strict=True)]
    w, h = np.array(shapes, float).reshape(-1, 2, 1).swapaxes(0, 1) - 2 * _BORDER
    s, t, inv_depth = (part[fragments.face] for part in (view.s, view.t, view.inv_depth))
    edge = (_BORDER - 0.5) * inv_depth
    return np.stack([w * s + edge, h * t + edge, inv_depth], axis=1)
