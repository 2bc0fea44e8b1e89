"""What stands in the procedural rooms: boxes, their materials, and furniture made of them.

Furniture is described in its own frame: x right, y down, z forward, in metres, standing on y = 0 with its
front towards -z and its back at +z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data.synthetic.textures import hsv, pattern, photo_crop, pyramid

# Origin, edge_u and edge_v of the faces of a box in units of its half sizes:
# front (-z), back (+z), left (-x), right (+x), top (-y), bottom (+y), each seen from outside.
_BOX_FACES = np.array(
    [
        [[-1, -1, -1], [2, 0, 0], [0, 2, 0]],
        [[1, -1, 1], [-2, 0, 0], [0, 2, 0]],
        [[-1, -1, 1], [0, 0, -2], [0, 2, 0]],
        [[1, -1, -1], [0, 0, 2], [0, 2, 0]],
        [[-1, -1, 1], [2, 0, 0], [0, 0, -2]],
        [[-1, 1, -1], [2, 0, 0], [0, 0, 2]],
    ],
    float,
)


@dataclass(frozen=True)
class Material:
    """A mip pyramid (RGBA) that tiles every ``metres``, or is stretched over a whole face where that is None."""

    levels: list[UInt8[np.ndarray, "_ _ 4"]]
    metres: float | None
    glow: bool = False  # shown as bright as the image is, whatever the light


@dataclass(frozen=True)
class Box:
    """A box turned by ``yaw`` about the vertical; materials of front, back, left, right, top and bottom."""

    centre: Float[np.ndarray, "3"]
    half: Float[np.ndarray, "3"]
    materials: Sequence[Material]
    yaw: float = 0.0


# ---------------------------------------------------------------- geometry of boxes


def turn(yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about the y axis that takes +z to (sin yaw, 0, cos yaw)."""
    c = np.cos(yaw)
    s = np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def box_faces(box: Box, inside_out: bool = False) -> Float[np.ndarray, "6 3 3"]:
    """Origin, edge_u and edge_v of the six faces in the world."""
    faces = _BOX_FACES * box.half
    if inside_out:
        faces = np.stack([faces[:, 0] + faces[:, 1], -faces[:, 1], faces[:, 2]], axis=1)
    faces = faces @ turn(box.yaw).T
    faces[:, 0] += box.centre
    return faces


def move(boxes: Sequence[Box], centre: np.ndarray, yaw: float) -> list[Box]:
    """Furniture from its own frame to a place in the room."""
    return [replace(b, centre=turn(yaw) @ b.centre + centre, yaw=b.yaw + yaw) for b in boxes]


# ---------------------------------------------------------------- materials


def _material(image: UInt8[np.ndarray, "_ _ 3"], metres: float | None, glow: bool = False) -> Material:
    return Material(pyramid(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)), metres, glow)


def lay(
    rng: np.random.Generator, material: Material, lengths: Float[np.ndarray, "2"], w: int, h: int
) -> UInt8[np.ndarray, "h w 4"]:
    """The material over a face of the given lengths, as an image of w by h texels."""
    full = material.levels[0].shape[1::-1]
    repeats = np.ones(2) if material.metres is None else lengths / material.metres
    step = repeats * full / (w, h)  # texels of the material for one of the face
    image = material.levels[int(np.clip(np.round(np.log2(max(step))), 0, len(material.levels) - 1))]
    if material.metres is None:
        return cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    # OpenCV's own BORDER_WRAP is ten times slower than laying the tiles side by side first
    columns, rows = (int(n) + 2 for n in repeats)
    tiled = np.tile(image, (rows, columns, 1))
    scale = step * image.shape[1::-1] / full
    start = rng.uniform(0, image.shape[0] - 1, 2)
    matrix = np.array([[scale[0], 0, start[0]], [0, scale[1], start[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tiled, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE)


class Style:
    """The materials of one room, drawn once, so that its furniture goes together."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        hue = rng.random()
        self._walls = [self._wall(hue + 0.06 * i) for i in range(2)]
        self._floor = self._make(
            str(rng.choice(["planks", "planks", "tiles", "weave", "checker", "gravel photo", "bricks", "diamonds"])),
            float(rng.choice([0.08, 0.1, rng.random()])),
            rng.uniform(0.08, 0.45),
            rng.uniform(0.5, 0.9),
            rng.uniform(1.0, 2.4),
        )
        self._ceiling = self._make("plaster", hue, 0.06, 0.97, 2.0, contrast=0.12)
        self._woods = [self._make("wood", rng.uniform(0.04, 0.11), 0.55, rng.uniform(0.4, 0.9), 1.0) for _ in "ab"]
        self._paints = [
            self._make("plaster", rng.random(), rng.uniform(0, 0.5), rng.uniform(0.5, 0.95), 1.2, 0.25) for _ in "abc"
        ]
        patterns = ["checker", "stripes", "dots", "diamonds", "weave", "grass photo", "tiles", "bricks"]
        self._fabrics = [
            self._make(str(name), rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.5, 0.95), rng.uniform(0.5, 1.2))
            for name in rng.choice(patterns, 4, replace=False)
        ]

    def _make(
        self, name: str, hue: float, saturation: float, value: float, metres: float, contrast: float = 0.55
    ) -> Material:
        light = hsv(hue, saturation, value)
        dark = hsv(hue - 0.03, min(1, saturation * 1.3), value * (1 - contrast))
        return _material(pattern(self._rng, name, dark, light), metres)

    def _wall(self, hue: float) -> Material:
        name = str(self._rng.choice(["plaster", "plaster", "stripes", "bricks", "brick photo", "diamonds", "dots"]))
        contrast = self._rng.uniform(0.15, 0.3) if name == "plaster" else self._rng.uniform(0.1, 0.45)
        saturation = self._rng.uniform(0.03, 0.3)
        value = self._rng.uniform(0.7, 0.98)
        return self._make(name, hue, saturation, value, self._rng.uniform(1.2, 2.4), contrast)

    def _pick(self, materials: Sequence[Material]) -> Material:
        return materials[int(self._rng.integers(len(materials)))]

    def shell(self) -> list[Material]:
        """Materials of the room itself, in the order of the faces of a box."""
        first, second = self._walls
        accent = self._rng.random() < 0.6
        return [first, second if accent else first, first, first, self._ceiling, self._floor]

    def wood(self) -> list[Material]:
        return [self._pick(self._woods)] * 6

    def paint(self) -> list[Material]:
        return [self._pick(self._paints)] * 6

    def solid(self) -> list[Material]:
        """Wood or paint, for furniture."""
        return self.wood() if self._rng.random() < 0.6 else self.paint()

    def fabric(self) -> list[Material]:
        return [self._pick(self._fabrics)] * 6

    def picture(self, aspect: float, frame: Sequence[Material]) -> list[Material]:
        """A photograph on the front and the frame's material elsewhere."""
        return [_material(photo_crop(self._rng, aspect), None), *frame[1:]]

    def printed(self) -> list[Material]:
        """A photograph on every side: a box with prints, a cushion."""
        return [_material(photo_crop(self._rng, 1.0), None)] * 6

    def colour(self, hue: float, saturation: float, value: float, glow: bool = False) -> list[Material]:
        light = hsv(hue, saturation, value)
        dark = hsv(hue, saturation, value * 0.85)
        return [_material(pattern(self._rng, "plaster", dark, light, size=64), 1.0, glow)] * 6


Length = float | int  # metres; the run-time type check takes no int for a float


def make_box(
    x: Length, bottom: Length, z: Length, w: Length, h: Length, d: Length, materials: Sequence[Material]
) -> Box:
    """Box of size (w, h, d) centred at x, z, its bottom ``bottom`` metres above the floor."""
    return Box(np.array([x, -bottom - h / 2, z]), np.array([w, h, d]) / 2, materials)


# ---------------------------------------------------------------- furniture, each in its own frame


def clutter(rng: np.random.Generator, style: Style, w: Length, d: Length, bottom: Length, count: int) -> list[Box]:
    """Small things standing side by side on a surface of size w by d."""
    things = []
    for i in range(count):
        x = (i + 0.5) / count * w - w / 2
        side = min(0.7 * w / count, 0.6 * d) * rng.uniform(0.5, 1.0)
        material = (style.printed, style.paint, style.fabric)[rng.integers(3)]()
        z = rng.uniform(-0.5, 0.5) * max(0.0, d - 1.45 * side)
        thing = make_box(x, bottom, z, side, rng.uniform(0.08, 0.4), side * rng.uniform(0.5, 1), material)
        things.append(replace(thing, yaw=rng.uniform(-0.4, 0.4)))
    return things


def _legs(w: float, h: float, d: float, side: float, materials: Sequence[Material]) -> list[Box]:
    x = (w - side) / 2
    z = (d - side) / 2
    return [make_box(a, 0, b, side, h, side, materials) for a in (-x, x) for b in (-z, z)]


def _chair(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(0.4, 0.5)
    seat = rng.uniform(0.42, 0.48)
    frame = style.solid()
    cover = style.fabric()
    back = make_box(0, seat + 0.05, w / 2 - 0.02, w, rng.uniform(0.35, 0.55), 0.04, cover)
    return [*_legs(w, seat, w, 0.045, frame), make_box(0, seat, 0, w, 0.05, w, cover), back]


def _table(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(0.9, 1.8)
    d = rng.uniform(0.6, 0.9)
    h = rng.uniform(0.68, 0.8)
    top = style.solid()
    frame = style.solid()
    boxes = [*_legs(w - 0.06, h, d - 0.06, 0.06, frame), make_box(0, h, 0, w, 0.04, d, top)]
    return boxes + clutter(rng, style, 0.9 * w, 0.9 * d, h + 0.04, int(rng.integers(1, 5)))


def _dining(rng: np.random.Generator, style: Style) -> list[Box]:
    """A table with chairs around it."""
    table = _table(rng, style)
    w = 2 * table[4].half[0]
    d = 2 * table[4].half[2]
    chair = _chair(rng, style)
    places = [(-w / 4, -d / 2 - 0.22, np.pi), (w / 4, d / 2 + 0.22, 0.0), (w / 2 + 0.25, 0.0, np.pi / 2)]
    for x, z, yaw in places[: rng.integers(1, 4)]:
        table += move(chair, np.array([x, 0, z]), yaw + rng.uniform(-0.25, 0.25))
    return table


def _cupboard(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(0.8, 1.8)
    h = rng.choice([rng.uniform(0.7, 1.1), rng.uniform(1.7, 2.1)])
    d = 0.5
    body = style.solid()
    door = style.solid()
    count = max(1, round(w / 0.5))
    boxes = [make_box(0, 0, 0, w, h, d, body)]
    for i in range(count):
        x = (i + 0.5) / count * w - w / 2
        boxes.append(make_box(x, 0.06, -d / 2 - 0.01, w / count - 0.03, h - 0.1, 0.02, door))
        boxes.append(
            make_box(x + 0.15 * w / count, h / 2, -d / 2 - 0.035, 0.02, 0.12, 0.03, style.colour(0.1, 0.2, 0.4))
        )
    return boxes + clutter(rng, style, 0.9 * w, d, h, int(rng.integers(0, 4)) if h < 1.5 else 0)


def _bookshelf(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(0.7, 1.4)
    h = rng.uniform(1.2, 2.1)
    d = 0.32
    wood = style.solid()
    back = style.paint()
    boxes = [make_box(0, 0, d / 2 - 0.01, w, h, 0.02, back)]
    boxes += [make_box(side * (w / 2 - 0.015), 0, -0.01, 0.03, h, d - 0.02, wood) for side in (-1, 1)]
    levels = int(rng.integers(3, 6))
    for i in range(levels + 1):
        boxes.append(make_box(0, i * (h - 0.03) / levels, -0.01, w - 0.06, 0.03, d - 0.02, wood))
    for i in range(levels):
        bottom = i * (h - 0.03) / levels + 0.03
        room = (h - 0.03) / levels - 0.08
        boxes += _books(rng, style, w - 0.1, bottom, room)
    return boxes


def _books(rng: np.random.Generator, style: Style, w: Length, bottom: Length, room: Length) -> list[Box]:
    boxes: list[Box] = []
    x = -w / 2
    while True:
        thick = rng.uniform(0.07, 0.2)
        if x + thick > w / 2:
            return boxes
        if rng.random() < 0.8:
            material = style.colour(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0))
            material = style.printed() if rng.random() < 0.2 else material
            boxes.append(make_box(x + thick / 2, bottom, 0.02, thick - 0.01, room * rng.uniform(0.6, 1), 0.2, material))
        x += thick


def _sofa(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(1.4, 2.2)
    d = rng.uniform(0.8, 0.95)
    seat = rng.uniform(0.36, 0.45)
    cover = style.fabric() if rng.random() < 0.5 else style.paint()
    boxes = [make_box(0, 0, 0, w - 0.3, seat, d, cover), make_box(0, seat, d / 2 - 0.1, w - 0.3, 0.42, 0.2, cover)]
    boxes += [make_box(side * (w / 2 - 0.08), 0, 0, 0.15, seat + 0.2, d, cover) for side in (-1, 1)]
    for i in range(int(rng.integers(1, 4))):
        cushion = make_box((i - 1) * 0.42, seat, 0.12, 0.38, 0.36, 0.12, (style.printed, style.fabric)[i % 2]())
        boxes.append(replace(cushion, yaw=rng.uniform(-0.3, 0.3)))
    return boxes


def _bed(rng: np.random.Generator, style: Style) -> list[Box]:
    w = rng.uniform(0.9, 1.7)
    d = 2.0
    frame = style.solid()
    cover = style.fabric()
    boxes = [make_box(0, 0, 0, w, 0.3, d, frame), make_box(0, 0.3, -0.02, w - 0.06, 0.2, d - 0.1, cover)]
    boxes.append(make_box(0, 0, d / 2 + 0.03, w, rng.uniform(0.7, 1.1), 0.06, frame))
    for side in (-1, 1):
        boxes.append(make_box(side * w / 4, 0.5, d / 2 - 0.35, w / 2 - 0.12, 0.12, 0.4, style.printed()))
    return boxes


def _boxes(rng: np.random.Generator, style: Style) -> list[Box]:
    """A stack of cardboard boxes and chests, each turned a little."""
    boxes = []
    bottom = 0.0
    side = rng.uniform(0.5, 0.75)
    for _ in range(int(rng.integers(1, 4))):
        height = rng.uniform(0.25, 0.5)
        material = (style.printed, style.solid, style.fabric)[rng.integers(3)]()
        boxes.append(replace(make_box(0, bottom, 0, side, height, side * 0.8, material), yaw=rng.uniform(-0.3, 0.3)))
        bottom = bottom + height
        side = side * rng.uniform(0.65, 0.9)
    return boxes


def _plant(rng: np.random.Generator, style: Style) -> list[Box]:
    """A pot with leaves, which are thin boxes turned about the vertical."""
    pot = rng.uniform(0.25, 0.4)
    height = rng.uniform(0.4, 1.0)
    boxes = [make_box(0, 0, 0, pot, pot, pot, style.paint()), make_box(0, pot, 0, 0.05, height, 0.05, style.wood())]
    for i in range(int(rng.integers(3, 7))):
        leaf = style.colour(rng.uniform(0.22, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.8))
        bottom = pot + height * rng.uniform(0.2, 0.8)
        box = make_box(0, bottom, 0, rng.uniform(0.25, 0.5), rng.uniform(0.15, 0.4), 0.012 + 0.002 * i, leaf)
        boxes.append(replace(box, yaw=i * 0.9 + rng.uniform(-0.3, 0.3)))
    return boxes


def _lamp(rng: np.random.Generator, style: Style) -> list[Box]:
    """A standing lamp."""
    h = rng.uniform(1.2, 1.7)
    shade = rng.uniform(0.25, 0.4)
    stem = style.colour(rng.random(), 0.2, 0.3)
    glow = style.colour(rng.uniform(0.05, 0.15), rng.uniform(0.15, 0.5), 1.0, glow=True)
    return [
        make_box(0, 0, 0, 0.28, 0.04, 0.28, stem),
        make_box(0, 0.04, 0, 0.04, h, 0.04, stem),
        make_box(0, h, 0, shade, shade * 0.9, shade, glow),
    ]


def _pillar(rng: np.random.Generator, style: Style) -> list[Box]:
    side = rng.uniform(0.25, 0.45)
    return [make_box(0, 0, 0, side, 4.0, side, style.shell()[:1] * 6)]


Builder = Callable[[np.random.Generator, Style], list[Box]]
AT_WALLS: tuple[Builder, ...] = (_cupboard, _bookshelf, _sofa, _bed, _cupboard, _bookshelf, _table, _lamp, _plant)
IN_THE_MIDDLE: tuple[Builder, ...] = (_dining, _table, _boxes, _chair, _boxes, _plant, _dining, _pillar)
