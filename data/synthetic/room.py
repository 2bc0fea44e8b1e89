"""Procedural rooms: walls, furniture, pictures and windows, with light baked into the textures.

World axes: x right, y down, z forward, in metres; the floor is y = 0, the ceiling y = -height, and the room
spans 0..width in x and 0..length in z.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float

from data.synthetic.furniture import (
    AT_WALLS,
    IN_THE_MIDDLE,
    Box,
    Material,
    Style,
    box_faces,
    clutter,
    lay,
    make_box,
    move,
    turn,
)
from data.synthetic.rendering import Faces, TextureLevels, texture_levels

DEFAULT_TEXEL = 0.005
_MAX_TEXTURE = 2048
_HEAD_ROOM = 2.05  # what hangs higher than this is no obstacle, metres
_STEP_OVER = 0.05  # nor is what lies lower


@dataclass(frozen=True)
class Room:
    """A room ready to render: its size (width, height, length), its faces, and what a walker must avoid.

    An obstacle is a rectangle on the floor: centre x, centre z, half size along its x, along its z, yaw.
    """

    size: Float[np.ndarray, "3"]
    faces: Faces
    obstacles: Float[np.ndarray, "o 5"]


def make_scene(seed: int | Sequence[int], texel: float = DEFAULT_TEXEL) -> Room:
    """The room of a seed. ``texel`` (metres) sets the detail of its textures, not what is in it."""
    rng = np.random.default_rng(seed)
    size = np.array([rng.uniform(3.8, 7.0), rng.uniform(2.4, 3.2), rng.uniform(4.5, 8.0)])
    style = Style(rng)
    furniture, footprints = _furnish(rng, size, style)
    boxes = [*furniture, *_decorate(rng, size, style)]
    light = _Light(rng, size, footprints)
    shell = Box(size * [0.5, -0.5, 0.5], size / 2, style.shell())
    parts = [box_faces(shell, inside_out=True), *(box_faces(box) for box in boxes)]
    origin, edge_u, edge_v = np.moveaxis(np.concatenate(parts), 1, 0)
    materials = [material for box in (shell, *boxes) for material in box.materials]
    reachable = _seen_from_inside(origin, edge_u, edge_v, size)
    textures = [
        _bake(rng, light, materials[i], origin[i], edge_u[i], edge_v[i], texel) for i in np.flatnonzero(reachable)
    ]
    faces = Faces(origin[reachable], edge_u[reachable], edge_v[reachable], textures)
    return Room(size, faces, _obstacles(boxes))


# ---------------------------------------------------------------- geometry


def _seen_from_inside(origin: np.ndarray, u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    """False for faces pressed against the floor, the ceiling or a wall, which no camera in the room can see."""
    corners = np.stack([origin, origin + u, origin + v, origin + u + v], axis=1)
    low = size * [0, -1, 0]
    high = size * [1, 0, 1]
    outward = np.cross(v, u)
    pressed_low = (corners <= low + 1e-6).all(axis=1) & (outward < 0)
    pressed_high = (corners >= high - 1e-6).all(axis=1) & (outward > 0)
    return np.logical_not((pressed_low | pressed_high).any(axis=1))


def _overlap(a: np.ndarray, b: np.ndarray, gap: float) -> bool:
    """Whether two floor rectangles (rows as in Room.obstacles) come closer than ``gap``."""

    def axes(r: np.ndarray) -> np.ndarray:
        return np.array([[np.cos(r[4]), -np.sin(r[4])], [np.sin(r[4]), np.cos(r[4])]])

    both = np.concatenate([axes(a), axes(b)])
    distance = np.abs(both @ (a[:2] - b[:2]))
    reach = np.abs(both @ axes(a).T) @ a[2:4] + np.abs(both @ axes(b).T) @ b[2:4]
    return bool(np.all(distance < reach + gap))


def _obstacles(boxes: Sequence[Box]) -> Float[np.ndarray, "o 5"]:
    rows = [
        (b.centre[0], b.centre[2], b.half[0], b.half[2], b.yaw)
        for b in boxes
        if b.centre[1] + b.half[1] > -_HEAD_ROOM and b.centre[1] - b.half[1] < -_STEP_OVER
    ]
    return np.array(rows, float).reshape(-1, 5)


# ---------------------------------------------------------------- a furnished room


def _extent(boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, z of furniture in its own frame."""
    parts = np.concatenate([box_faces(box) for box in boxes])
    corners = np.concatenate([parts[:, 0], parts[:, 0] + parts[:, 1] + parts[:, 2]])
    return corners.min(axis=0), corners.max(axis=0)


def _furnish(rng: np.random.Generator, size: np.ndarray, style: Style) -> tuple[list[Box], list[np.ndarray]]:
    """Boxes of the furniture, and one floor rectangle for each piece of it."""
    boxes: list[Box] = []
    taken: list[np.ndarray] = []
    area = size[0] * size[2]
    plan = [(AT_WALLS, True)] * int(rng.integers(5, 9)) + [(IN_THE_MIDDLE, False)] * int(1 + area / 12)
    for builders, at_wall in plan:
        piece = builders[rng.integers(len(builders))](rng, style)
        low, high = _extent(piece)
        centre = (low + high) / 2 * [1, 0, 1]
        piece = move(piece, -centre, 0.0)
        half = (high - low) / 2
        for _ in range(12):
            place, yaw = (_wall_place if at_wall else _free_place)(rng, size, half)
            footprint = np.array([place[0], place[2], half[0], half[2], yaw])
            if not any(_overlap(footprint, other, 0.08 if at_wall else 0.5) for other in taken):
                taken.append(footprint)
                boxes += _cut_to_height(move(piece, place, yaw), size[1])
                break
    return boxes, taken


def _cut_to_height(boxes: list[Box], height: float) -> list[Box]:
    """Let what is taller than the room end at the ceiling."""
    cut = []
    for box in boxes:
        bottom = -(box.centre[1] + box.half[1])
        top = min(height, -(box.centre[1] - box.half[1]))
        middle = -(bottom + top) / 2
        half = (top - bottom) / 2
        cut.append(
            replace(
                box,
                centre=np.array([box.centre[0], middle, box.centre[2]]),
                half=np.array([box.half[0], half, box.half[2]]),
            )
        )
    return cut


def _wall_frame(wall: int, size: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Yaw, middle point on the floor, unit vector along and half width of one of the four walls."""
    yaw = wall * np.pi / 2
    middle = size * [0.5, 0, 0.5]
    back = turn(yaw) @ [0, 0, 1]
    along = turn(yaw) @ [1, 0, 0]
    return yaw, middle + back * abs(float(back @ middle)), along, abs(float(along @ size)) / 2


def _wall_place(rng: np.random.Generator, size: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, float]:
    yaw, middle, along, reach = _wall_frame(int(rng.integers(4)), size)
    spare = max(0.0, reach - half[0] - 0.05)
    back = turn(yaw) @ [0, 0, 1]
    return middle + along * rng.uniform(-spare, spare) - back * (half[2] + 0.02), yaw


def _free_place(rng: np.random.Generator, size: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, float]:
    margin = float(np.hypot(half[0], half[2])) + 0.1
    low = np.minimum(margin, size / 2)
    high = np.maximum(size - margin, size / 2)
    yaw = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.3)
    return np.array([rng.uniform(low[0], high[0]), 0.0, rng.uniform(low[2], high[2])]), float(yaw)


def _decorate(rng: np.random.Generator, size: np.ndarray, style: Style) -> list[Box]:
    """Pictures, windows and a door on the walls, skirting boards, a rug, lamps under the ceiling."""
    skirting = style.paint()
    boxes = []
    door_wall = int(rng.integers(4))
    for wall in range(4):
        yaw, middle, _, reach = _wall_frame(wall, size)
        items = [make_box(0, 0, 0, 2 * reach - 0.03, 0.09, 0.012, skirting)]
        slots = int(rng.integers(1, max(2, int(reach / 0.8)) + 1))
        for i in range(slots):
            x = ((i + 0.5) / slots * 2 - 1) * (reach - 0.15)
            width = min(1.9 * (reach - 0.15) / slots, 2.2)
            items += _wall_item(rng, style, x, width, size[1], door=wall == door_wall and i == 0)
        boxes += move([_against_wall(item) for item in items], middle, yaw)
    return [*boxes, *_rug(rng, size, style), *_ceiling_lamps(rng, size, style)]


def _against_wall(box: Box) -> Box:
    """Move an item so that its back touches z = 0, unless it was already put in front of another one."""
    return box if box.centre[2] < 0 else replace(box, centre=box.centre - [0, 0, box.half[2]])


def _wall_item(rng: np.random.Generator, style: Style, x: float, width: float, height: float, door: bool) -> list[Box]:
    frame = style.solid()
    if door:
        return [make_box(x, 0, 0, 0.95, 2.05, 0.04, frame), make_box(x, 0, -0.05, 0.8, 1.97, 0.02, style.solid())]
    kind = rng.random()
    if kind < 0.35:
        w = min(width, rng.uniform(0.8, 2.0))
        h = rng.uniform(0.9, 1.3)
        return _window(rng, style, x, w, h, frame)
    if kind < 0.45:
        shelf = make_box(x, 1.3, -0.12, min(width, 1.2), 0.03, 0.22, frame)
        things = clutter(rng, style, min(width, 1.2), 0.2, 1.33, 3)
        return [shelf, *(replace(b, centre=np.array([b.centre[0] + x, b.centre[1], -0.13])) for b in things)]
    w = min(width, rng.uniform(0.4, 1.3))
    h = rng.uniform(0.4, 1.0)
    bottom = min(rng.uniform(1.1, 1.6), height - h - 0.15)
    picture = make_box(
        x, bottom + 0.04, -0.035, w - 0.08, h - 0.08, 0.01, style.picture((w - 0.08) / (h - 0.08), frame)
    )
    return [make_box(x, bottom, 0, w, h, 0.03, frame), picture]


def _window(
    rng: np.random.Generator, style: Style, x: float, w: float, h: float, frame: Sequence[Material]
) -> list[Box]:
    view = [replace(m, glow=True) for m in style.picture(w / h, frame)[:1]]
    sky = style.colour(0.57, rng.uniform(0.05, 0.35), 1.0, glow=True)[:1]
    pane = make_box(x, 1.0, -0.035, w - 0.1, h - 0.1, 0.01, [*(view if rng.random() < 0.5 else sky), *frame[1:]])
    upright = make_box(x, 1.0, -0.05, 0.04, h - 0.1, 0.02, frame)
    across = make_box(x, 0.95 + h * 0.6, -0.05, w - 0.1, 0.04, 0.02, frame)
    return [make_box(x, 0.95, 0, w, h, 0.03, frame), pane, *[upright, across][: rng.integers(1, 3)]]


def _rug(rng: np.random.Generator, size: np.ndarray, style: Style) -> list[Box]:
    if rng.random() < 0.3:
        return []
    w, d = rng.uniform(0.3, 0.55) * size[[0, 2]]
    material = style.picture(w / d, style.paint())[:1] if rng.random() < 0.3 else style.fabric()
    rug = make_box(size[0] / 2, 0, size[2] / 2, w, 0.008, d, material[:1] * 6)
    return [replace(rug, yaw=rng.uniform(-0.25, 0.25))]


def _ceiling_lamps(rng: np.random.Generator, size: np.ndarray, style: Style) -> list[Box]:
    boxes = []
    for i in range(int(rng.integers(1, 4))):
        x = rng.uniform(0.25, 0.75) * size[0]
        z = (0.2 + 0.25 * i) * size[2]
        drop = rng.uniform(0.02, max(0.03, size[1] - 2.35))
        side = rng.uniform(0.2, 0.45)
        glow = style.colour(rng.uniform(0.05, 0.15), rng.uniform(0.05, 0.3), 1.0, glow=True)
        boxes.append(make_box(x, size[1] - drop - 0.12, z, side, 0.12, side, glow))
        boxes.append(make_box(x, size[1] - drop, z, 0.02, drop, 0.02, style.wood()))
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.3 else 0):
        z = rng.uniform(0.1, 0.9) * size[2]
        boxes.append(make_box(size[0] / 2, size[1] - 0.16, z, size[0], 0.16, 0.14, style.wood()))
    return boxes


# ---------------------------------------------------------------- light


class _Light:
    """Light that falls on a point: ambient, two lamps with Lambert shading, darker towards corners and furniture."""

    def __init__(self, rng: np.random.Generator, size: np.ndarray, footprints: list[np.ndarray]) -> None:
        self._size = size
        self._footprints = footprints
        self._lamps = size * np.stack([[rng.uniform(0.2, 0.8), -0.9, where] for where in rng.uniform(0.1, 0.9, 2)])
        tint = rng.uniform(-0.06, 0.1)
        self._colours = np.array([[1 + tint, 1, 1 - tint], [1 - tint / 2, 1, 1 + tint / 2]])
        self._ambient = rng.uniform(0.38, 0.55)
        self._strength = rng.uniform(0.45, 0.8, 2)

    def at(self, points: Float[np.ndarray, "h w 3"], normal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "h w 3"]:
        """RGB factor for a surface at the points whose unit normal (towards the viewer) is given."""
        light = np.full(points.shape, self._ambient) * (1 - 0.12 * normal[1])
        for lamp, colour, strength in zip(self._lamps, self._colours, self._strength, strict=True):
            to_lamp = lamp - points
            distance = np.linalg.norm(to_lamp, axis=-1, keepdims=True) + 1e-6
            cosine = np.maximum(to_lamp @ normal, 0)[..., None] / distance
            light += colour * strength * (0.25 + cosine) / (1 + (distance / 3.0) ** 2)
        return light * self._openness(points, normal)[..., None]

    def _openness(self, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """How little the walls, the floor, the ceiling and the furniture next to a point shade it."""
        open_ = np.ones(points.shape[:2])
        low = self._size * [0, -1, 0]
        high = self._size * [1, 0, 1]
        for axis in range(3):
            for distance, inward in ((points[..., axis] - low[axis], 1), (high[axis] - points[..., axis], -1)):
                weight = 0.3 * min(1.0, 1 - normal[axis] * inward)
                open_ *= 1 - weight * np.exp(-np.maximum(distance, 0) / 0.3)
        if normal[1] < -0.9 and np.abs(points[..., 1]).max() < 0.02:
            for footprint in self._footprints:
                open_ *= 1 - 0.45 * np.exp(-floor_distance(points[..., [0, 2]], footprint[None])[..., 0] / 0.18)
        return open_


def floor_distance(
    points: Float[np.ndarray, "... 2"], rectangles: Float[np.ndarray, "o 5"]
) -> Float[np.ndarray, "... o"]:
    """Distance of floor points (x, z) to every rectangle (see Room.obstacles); 0 inside."""
    x = points[..., None, 0] - rectangles[:, 0]
    z = points[..., None, 1] - rectangles[:, 1]
    c = np.cos(rectangles[:, 4])
    s = np.sin(rectangles[:, 4])
    across = np.maximum(np.abs(c * x - s * z) - rectangles[:, 2], 0)
    along = np.maximum(np.abs(s * x + c * z) - rectangles[:, 3], 0)
    return np.hypot(across, along)


def _bake(
    rng: np.random.Generator,
    light: _Light,
    material: Material,
    origin: Float[np.ndarray, "3"],
    edge_u: Float[np.ndarray, "3"],
    edge_v: Float[np.ndarray, "3"],
    texel: float,
) -> TextureLevels:
    """Mip pyramid of a face: its material, lit."""
    lengths = np.array([np.linalg.norm(edge_u), np.linalg.norm(edge_v)])
    w, h = (int(n) for n in np.clip(np.round(lengths / texel), 2, _MAX_TEXTURE))
    texture = lay(rng, material, lengths, w, h)
    if material.glow:
        return texture_levels(texture)
    columns, rows = (int(n) for n in np.clip(np.ceil(lengths / 0.15), 2, 40))
    s, t = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    normal = np.cross(edge_v, edge_u) / (lengths[0] * lengths[1])
    factor = light.at(origin + s[..., None] * edge_u + t[..., None] * edge_v, normal)
    shade = cv2.cvtColor(np.clip(np.round(160 * factor), 0, 255).astype(np.uint8), cv2.COLOR_RGB2RGBA)
    shade = cv2.resize(shade, (w, h), interpolation=cv2.INTER_LINEAR)
    return texture_levels(cv2.multiply(texture, shade, scale=1 / 160))
