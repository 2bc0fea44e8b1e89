"""Procedural objects, composed of solids: vases, toy blocks, furniture, animals, vehicles, houses, heaps.

World axes: z is up. An object lies about the origin, within `LARGEST_RADIUS` of it.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data.synthetic.furniture import Material, Style
from data.synthetic.solids import Number, Polyhedron, Shape, Solid, Torus, Values, hull, lathed, place, prism

LARGEST_RADIUS = 1.1
# The longest side of the box around an object.
_SIDES = (1.4, 1.95)
_RING = Torus(0.2)
_THIN_RING = Torus(0.1)
_SPHERE = lathed(0, 1, 0)
_CYLINDER = lathed(1, 1, 1)
_CONE = lathed(1, 0.5, 0)
_DOME = lathed(1, 0.7071, 0)
_MIRROR = np.diag([-1.0, 1, 1, 1])

Random = np.random.Generator


def make_object(seed: int | Sequence[int]) -> list[Solid]:
    """The solids of the object of a seed."""
    rng = np.random.default_rng(seed)
    palette = Palette(rng)
    build = BUILDERS[int(rng.integers(len(BUILDERS)))]
    return _fitted(rng, build(rng, palette))


def _fitted(rng: Random, solids: Sequence[Solid]) -> list[Solid]:
    """Solids turned about the vertical, moved to the origin and scaled."""
    turned = np.eye(4)
    turned[:3, :3] = _turn("z", rng.uniform(0, 360))
    points = np.concatenate([_outline(solid) for solid in solids]) @ turned[:3, :3].T
    low = points.min(axis=0)
    high = points.max(axis=0)
    centre = (low + high) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    scale = min(rng.uniform(*_SIDES) / (high - low).max(), LARGEST_RADIUS / radius)
    matrix = np.diag([scale, scale, scale, 1.0]) @ turned
    matrix[:3, 3] = -scale * centre
    return [solid.moved(matrix) for solid in solids]


def _outline(solid: Solid) -> Float[np.ndarray, "n 3"]:
    """Points over the surface of a solid."""
    u, v = np.meshgrid(np.linspace(0, 1, 13), np.linspace(0, 1, 7))
    return np.concatenate([solid.surface(patch, u, v)[0].reshape(-1, 3) for patch in solid.shape.patches])


class Palette:
    """The few materials of one object, so that its parts go together."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._style = Style(rng)
        self._few = [self.other() for _ in range(int(rng.integers(2, 5)))]

    def one(self) -> Material:
        """One of the few."""
        return self._few[int(self._rng.integers(len(self._few)))]

    def other(self) -> Material:
        """A new one."""
        draw = self._rng.random()
        if draw < 0.25:
            return self._style.fabric()[0]
        if draw < 0.4:
            return self._style.wood()[0]
        if draw < 0.55:
            return self._style.paint()[0]
        return self.printed() if draw < 0.75 else self.colour()

    def printed(self) -> Material:
        """A photograph."""
        return self._style.printed()[0]

    def colour(self) -> Material:
        """One colour, or nearly."""
        rng = self._rng
        return self._style.colour(rng.random(), rng.uniform(0.15, 0.9), rng.uniform(0.35, 1.0))[0]


# ---------------------------------------------------------------- parts


@cache
def _prism(sides: int, top: float = 1.0) -> Polyhedron:
    return prism(sides, top)


def _turn(axes: str, *degrees: Number) -> Float[np.ndarray, "3 3"]:
    return Rotation.from_euler(axes, degrees, degrees=True).as_matrix()


def _box(material: Material, x: Number, y: Number, z: Number, size: Values, yaw: Number = 0) -> Solid:
    """A box of a size (x, y, z) that stands at the height z."""
    half = np.asarray(size) / 2
    return place(_prism(4), material, (x, y, z + half[2]), half, _turn("z", yaw))


def _turned(material: Material, x: Number, y: Number, z: Number, height: Number, radii: Values) -> Solid:
    """A lathed part that stands at the height z, of the radii at its bottom, middle and top."""
    shape = lathed(*radii)
    return place(shape, material, (x, y, z + height / 2), (*shape.half[:2], height / 2))


def _ball(material: Material, centre: Values, half: Values | Number) -> Solid:
    return place(_SPHERE, material, centre, np.broadcast_to(half, 3))


def _ring(material: Material, centre: Values, radius: Number, turn: np.ndarray | None = None) -> Solid:
    """A ring whose tube's middle has a radius."""
    return place(_RING, material, centre, radius * _RING.half, turn)


def _rod(material: Material, start: Values, end: Values, radius: Number, tip: Number = 1) -> Solid:
    """A rod between two points, at its end `tip` times as thick."""
    way = np.subtract(end, start)
    length = np.linalg.norm(way)
    turn, _ = Rotation.align_vectors([way / length], [[0, 0, 1]])
    shape = lathed(1, (1 + tip) / 2, tip)
    half = (*(radius * shape.half[:2]), float(length) / 2)
    return place(shape, material, np.add(start, end) / 2, half, turn.as_matrix())


def _both_sides(solids: Sequence[Solid]) -> list[Solid]:
    """Solids of shapes that are their own mirror images, and the same on the other side of x = 0."""
    return [*solids, *(Solid(s.shape, _MIRROR @ s.pose @ _MIRROR, s.material) for s in solids)]


# ---------------------------------------------------------------- objects


def _vase(rng: Random, palette: Palette) -> list[Solid]:
    """Lathed parts on top of one another, rings between some of them, handles, a knob."""
    solids = []
    z = 0.0
    radius = rng.uniform(0.35, 1.0)
    for _ in range(int(rng.integers(2, 6))):
        height = rng.uniform(0.25, 0.9)
        top = rng.uniform(0.25, 1.0)
        middle = (radius + top) / 2 * rng.uniform(1.0, 1.35) if rng.random() < 0.7 else np.sqrt(radius * top)
        solids.append(_turned(palette.one(), 0, 0, z, height, (radius, middle, top)))
        z += height
        if rng.random() < 0.3:
            solids.append(_ring(palette.one(), (0, 0, z), top))
        radius = top if rng.random() < 0.75 else rng.uniform(0.25, 1.0)
    if rng.random() < 0.4:
        solids.append(_ball(palette.one(), (0, 0, z + 0.6 * radius), 0.8 * radius))
    if rng.random() < 0.4:
        material = palette.one()
        solids += _both_sides([_ring(material, (0.9, 0, 0.6 * z), 0.25 * z, _turn("x", 90))])
    return solids


def _blocks(rng: Random, palette: Palette) -> list[Solid]:
    """Toy blocks, piled up on a grid."""
    solids = []
    own = [palette.other() for _ in range(4)]
    for x in range(int(rng.integers(1, 5))):
        for y in range(int(rng.integers(1, 3))):
            for z in range(int(rng.integers(1, 4))):
                material = palette.printed() if rng.random() < 0.5 else own[int(rng.integers(4))]
                shift = rng.uniform(-0.06, 0.06, 2)
                solids.append(_box(material, x + shift[0], y + shift[1], z, (0.96, 0.96, 1), rng.normal(0, 3)))
    if rng.random() < 0.5:
        top = max(solid.pose[2, 3] for solid in solids if solid.pose[0, 3] < 0.5)
        shape = (_CONE, _CYLINDER, _prism(4, 0.0), _SPHERE)[int(rng.integers(4))]
        solids.append(place(shape, palette.other(), (0, 0, top + 0.5 + 0.4), (0.45, 0.45, 0.4)))
    return solids


def _legs(material: Material, x: Number, y: Number, height: Number, radius: Number, tip: Number) -> list[Solid]:
    return [_rod(material, (a, b, height), (1.1 * a, 1.1 * b, 0), radius, tip) for a in (-x, x) for b in (-y, y)]


def _seat(rng: Random, palette: Palette) -> list[Solid]:
    """A chair, a stool or a table, with a thing or two on it."""
    width, depth = rng.uniform(0.7, 1.6, 2)
    height = rng.uniform(0.5, 1.2)
    frame = palette.one()
    thick = rng.uniform(0.06, 0.2)
    radius = rng.uniform(0.05, 0.12)
    is_round = rng.random() < 0.3
    reach = 0.3 if is_round else 0.42
    solids = _legs(frame, reach * width, reach * depth, height, radius, rng.uniform(0.5, 1.2))
    if is_round:
        top = place(_CYLINDER, palette.one(), (0, 0, height + thick / 2), (width / 2, depth / 2, thick / 2))
    else:
        top = _box(palette.one(), 0, 0, height, (width, depth, thick))
    solids.append(top)
    surface = height + thick
    if rng.random() < 0.5:
        back = rng.uniform(0.4, 1.0)
        solids.append(_box(palette.one(), 0, -0.45 * depth, surface, (0.9 * width, 0.1 * depth, back)))
    if rng.random() < 0.4:
        arms = rng.uniform(0.2, 0.4)
        solids += _both_sides([_box(frame, 0.46 * width, 0, surface, (0.08 * width, 0.8 * depth, arms))])
    for side in (-1, 1):
        if rng.random() < 0.5:
            solids.append(_thing(rng, palette, side * 0.2 * width, 0.1, surface, rng.uniform(0.12, 0.3)))
    return solids


def _thing(rng: Random, palette: Palette, x: Number, y: Number, z: Number, size: Number) -> Solid:
    """A small thing that stands at a place."""
    height = size * rng.uniform(0.7, 2)
    if rng.random() < 0.4:
        return _box(palette.other(), x, y, z, (size, size * rng.uniform(0.6, 1), height), rng.uniform(0, 90))
    radii = ((0, 0.5, 0), (0.5, 0.5, 0.5), (0.5, 0.25, 0), (0.3, 0.5, 0.25))[int(rng.integers(4))]
    return _turned(palette.other(), x, y, z, height, size * np.array(radii))


def _animal(rng: Random, palette: Palette) -> list[Solid]:
    """A body with a head, legs, ears, eyes and a tail; it looks along y."""
    skin = palette.one()
    other = palette.one()
    width, length, height = rng.uniform((0.35, 0.6, 0.35), (0.6, 1.0, 0.6))
    leg = rng.uniform(0.3, 0.9)
    z = leg + 0.7 * height
    solids = [_ball(skin, (0, 0, z), (width, length, height))]
    legs = [_rod(other, (0.6 * width, y, z), (0.65 * width, y, 0), 0.16, 1.2) for y in (-0.6 * length, 0.6 * length)]
    solids += _both_sides(legs)
    head = rng.uniform(0.28, 0.5)
    at = np.array([0, length + 0.3 * head, z + rng.uniform(0.2, 0.9)])
    solids.append(_rod(skin, (0, 0.6 * length, z), at, 0.2, 0.9))
    solids.append(_ball(skin, at, (head, 1.1 * head, head)))
    ear = at + head * np.array([0.6, -0.1, 0.9])
    ear_shape = (_CONE, _SPHERE)[int(rng.integers(2))]
    eye = at + head * np.array([0.4, 0.95, 0.35])
    ears = place(ear_shape, other, ear, head * np.array([0.25, 0.2, rng.uniform(0.3, 0.8)]), _turn("y", 20))
    dark = palette.colour()
    solids += _both_sides([ears, _ball(dark, eye, 0.16 * head)])
    solids.append(_ball(other, at + head * np.array([0, 1.05, -0.2]), 0.4 * head))
    tail = (0, -length - rng.uniform(0.1, 0.7), z + rng.uniform(-0.2, 0.7))
    solids.append(_rod(skin, (0, -0.8 * length, z), tail, 0.09, rng.uniform(0.3, 2)))
    return solids


def _vehicle(rng: Random, palette: Palette) -> list[Solid]:
    """A body on wheels, with a cabin and a load; it drives along y."""
    paint = palette.one()
    width, length, height = rng.uniform((0.7, 1.4, 0.3), (1.0, 2.2, 0.6))
    wheel = rng.uniform(0.2, 0.36)
    solids = [_box(paint, 0, 0, 0.8 * wheel, (width, length, height))]
    rubber = palette.colour()
    hub = palette.one()
    along = [_wheel(rubber, hub, width / 2, y, wheel) for y in (-0.3 * length, 0.32 * length)]
    solids += _both_sides([part for wheel_parts in along for part in wheel_parts])
    top = 0.8 * wheel + height
    cabin = rng.uniform(0.3, 0.6)
    at = rng.uniform(-0.2, 0.3) * length
    cabin_shape = (_prism(4, rng.choice([1.0, 0.7])), _DOME)[int(rng.random() < 0.3)]
    half = (0.45 * width, rng.uniform(0.15, 0.3) * length, cabin / 2)
    solids.append(place(cabin_shape, palette.one(), (0, at, top + cabin / 2), half))
    if rng.random() < 0.5:
        solids.append(_thing(rng, palette, 0, at - 0.4 * length, top, 0.4 * width))
    lamps = palette.colour()
    solids += _both_sides([_ball(lamps, (0.3 * width, length / 2, top - 0.4 * height), 0.09)])
    return solids


def _wheel(rubber: Material, hub: Material, x: Number, y: Number, radius: Number) -> list[Solid]:
    turn = _turn("y", 90)
    return [
        _ring(rubber, (x, y, radius), 0.8 * radius, turn),
        place(_CYLINDER, hub, (x, y, radius), (0.75 * radius, 0.75 * radius, 0.12 * radius), turn),
    ]


def _mug(rng: Random, palette: Palette) -> list[Solid]:
    """A pot with a handle, on a saucer, with a lid or a spout."""
    height = rng.uniform(0.8, 1.8)
    radii = (rng.uniform(0.45, 0.8), rng.uniform(0.65, 0.9), rng.uniform(0.45, 0.8))
    body = palette.printed() if rng.random() < 0.5 else palette.one()
    other = palette.one()
    solids = [_turned(body, 0, 0, 0, height, radii)]
    handle = rng.uniform(0.2, 0.32) * height
    solids.append(_ring(other, (0.95 * radii[1], 0, 0.5 * height), handle, _turn("x", 90)))
    if rng.random() < 0.5:
        solids.append(_turned(other, 0, 0, -0.1, 0.1, (0.7, 0.95, rng.uniform(1.0, 1.4))))
    if rng.random() < 0.5:
        lid = 0.95 * radii[2]
        solids.append(place(_DOME, other, (0, 0, height + 0.12), (lid, lid, 0.12)))
        solids.append(_ball(palette.one(), (0, 0, height + 0.3), 0.1))
    if rng.random() < 0.4:
        solids.append(_rod(other, (-0.5 * radii[1], 0, 0.35 * height), (-1.5 * radii[1], 0, 0.9 * height), 0.16, 0.5))
    return solids


def _house(rng: Random, palette: Palette) -> list[Solid]:
    """Walls, a roof, a chimney, a door and windows, trees beside it."""
    width, depth, height = rng.uniform((0.9, 0.9, 0.6), (1.6, 1.6, 1.2))
    walls = palette.one()
    trim = palette.one()
    roof = rng.uniform(0.35, 0.8)
    solids = [_box(walls, 0, 0, 0, (width, depth, height))]
    if rng.random() < 0.6:
        solids.append(place(_roof(), palette.one(), (0, 0, height + roof / 2), (0.58 * width, 0.58 * depth, roof / 2)))
    else:
        solids.append(
            place(_prism(4, 0.0), palette.one(), (0, 0, height + roof / 2), (0.6 * width, 0.6 * depth, roof / 2))
        )
    solids.append(_box(palette.one(), 0.25 * width, 0.2 * depth, height, (0.16, 0.16, 0.9 * roof)))
    door = palette.colour()
    solids.append(_box(door, 0, depth / 2, 0, (0.25, 0.06, 0.5 * height)))
    for side in (-1, 1):
        for face in (-1, 1):
            pane = palette.printed() if rng.random() < 0.5 else trim
            solids.append(_box(pane, side * 0.3 * width, face * depth / 2, 0.45 * height, (0.24, 0.05, 0.24)))
    for side in (-1, 1):
        if rng.random() < 0.5:
            solids += _tree(rng, palette, side * (width / 2 + 0.4), rng.uniform(-0.4, 0.4))
    return solids


@cache
def _roof() -> Polyhedron:
    return hull(np.array([[x, y, -1.0] for x in (-1, 1) for y in (-1, 1)] + [[x, 0, 1.0] for x in (-1, 1)]))


def _tree(rng: Random, palette: Palette, x: Number, y: Number) -> list[Solid]:
    trunk = rng.uniform(0.2, 0.5)
    crown = rng.uniform(0.5, 0.9)
    radii = ((0.3, 0.15, 0.0), (0.0, 0.35, 0.0))[int(rng.integers(2))]
    return [
        _rod(palette.one(), (x, y, 0), (x, y, trunk + 0.1), 0.06),
        _turned(palette.other(), x, y, trunk, crown, radii),
    ]


def _rings(rng: Random, palette: Palette) -> list[Solid]:
    """Rings piled on a rod, a ball on top."""
    solids = [_turned(palette.one(), 0, 0, -0.15, 0.15, (0.9, 0.9, 0.8))]
    z = 0.0
    radius = rng.uniform(0.6, 0.85)
    for _ in range(int(rng.integers(3, 7))):
        solids.append(_ring(palette.other(), (0, 0, z + 0.2 * radius), radius))
        z += 0.37 * radius
        radius *= rng.uniform(0.75, 1.0)
    solids.append(_rod(palette.one(), (0, 0, -0.05), (0, 0, z + 0.2), 0.25 * radius))
    solids.append(_ball(palette.one(), (0, 0, z + 0.2), 0.45 * radius))
    return solids


def _lamp(rng: Random, palette: Palette) -> list[Solid]:
    """A foot, a bent stem and a shade; or a plant in a pot."""
    height = rng.uniform(0.8, 1.6)
    if rng.random() < 0.5:
        foot = _turned(palette.one(), 0, 0, 0, 0.12, (0.5, 0.48, 0.3))
        bend = np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), height])
        stem = palette.one()
        end = bend + rng.uniform((0, 0, 0.1), (0, 0.5, 0.5))
        shade = rng.uniform(0.35, 0.6)
        cover = _turned(palette.one(), end[0], end[1], end[2] - 0.3, 0.5, (shade, 0.8 * shade, 0.5 * shade))
        return [foot, _rod(stem, (0, 0, 0.05), bend, 0.06), _rod(stem, bend, end, 0.06), _ball(stem, bend, 0.09), cover]
    pot = _turned(palette.one(), 0, 0, 0, 0.5, (0.3, 0.38, 0.42))
    leaf = palette.one()
    solids = [pot, _rod(palette.one(), (0, 0, 0.4), (0, 0, height), 0.05)]
    for number in range(int(rng.integers(4, 10))):
        turn = _turn("ZY", 137.5 * number, rng.uniform(40, 100))
        length = rng.uniform(0.25, 0.5)
        centre = turn @ [0, 0, length] + [0, 0, rng.uniform(0.5, 1) * height]
        solids.append(place(_SPHERE, leaf, centre, (0.05, 0.2, length), turn))
    return solids


def _stones(rng: Random, palette: Palette) -> list[Solid]:
    """Convex stones that lie against one another."""
    solids = []
    for _ in range(int(rng.integers(1, 5))):
        corners = rng.normal(size=(int(rng.integers(6, 16)), 3))
        shape = hull(corners / np.linalg.norm(corners, axis=1, keepdims=True))
        centre = rng.uniform(-0.6, 0.6, 3) * [1, 1, 0.6]
        solids.append(place(shape, palette.one(), centre, shape.half * rng.uniform(0.4, 0.9), _any_turn(rng)))
    return solids


def _any_turn(rng: Random) -> Float[np.ndarray, "3 3"]:
    return Rotation.random(random_state=rng).as_matrix()


def _heap(rng: Random, palette: Palette) -> list[Solid]:
    """Solids of all kinds, in each other's way."""
    shapes: list[Shape] = [_SPHERE, _CYLINDER, _CONE, _DOME, _RING, _THIN_RING, _roof()]
    shapes += [_prism(4), _prism(3), _prism(6), _prism(4, 0.5), lathed(1, 0.5, 1), lathed(0.5, 1, 0.5)]
    solids = []
    for _ in range(int(rng.integers(2, 8))):
        shape = shapes[int(rng.integers(len(shapes)))]
        scale = rng.uniform(0.25, 0.65)
        half = shape.half / shape.half.max() * scale * rng.uniform(0.6, 1.3, 3)
        solids.append(place(shape, palette.one(), rng.uniform(-0.6, 0.6, 3), half, _any_turn(rng)))
    return solids


BUILDERS: Sequence[Callable[[Random, Palette], list[Solid]]] = (
    _vase,
    _blocks,
    _seat,
    _animal,
    _vehicle,
    _mug,
    _house,
    _rings,
    _lamp,
    _stones,
    _heap,
    _heap,
)
