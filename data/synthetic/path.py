"""Camera paths of somebody who walks through a procedural room with a camera in hand.

A path is a smooth function of the distance walked. It is sampled every ``speed`` metres or so: more frames
walk further, they do not walk slower. Nobody can walk far in a room, so a long path swings back and forth on
its curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from data.synthetic.rendering import Pinhole, cast
from data.synthetic.room import Room, floor_distance

DEFAULT_SPEED = 0.013  # metres a frame: 2 m in 150 frames
WALL_CLEARANCE = 0.4
FURNITURE_CLEARANCE = 0.3
_LONGEST_WALK = 3.0  # metres before the walker turns back
_HEADINGS = (0.0, 0.0, np.pi, 0.5 * np.pi, -0.5 * np.pi)  # walks ahead, back or sideways relative to the view
_CANDIDATES = 6  # clear paths that are compared by what they show
_ATTEMPTS = 400
_GLANCE = (48, 27)  # size of the tiny depth images by which paths are judged


@dataclass(frozen=True)
class _Walk:
    """Parameters of one path; angles in radians, distances in metres."""

    start: Float[np.ndarray, "2"]  # x, z
    height: float
    heading: float  # direction of the first step, from +z towards +x
    curvature: float  # radians a metre
    pace: float  # metres walked for every nominal metre
    yaw: float
    swing: Float[np.ndarray, "3"]  # view against nominal distance: amplitude, radians a metre, phase
    pitch: float
    shake: Float[np.ndarray, "6 3 2"]  # x, y, z, yaw, pitch, roll; three waves; radians a metre and phase


def make_path(
    room: Room,
    seed: int | Sequence[int],
    frames: int,
    *,
    speed: float = DEFAULT_SPEED,
    aspect: float = 16 / 9,
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "4"]]:
    """A walk through the room.

    Args:
        room: the room, which the path stays inside of, clear of the walls and of furniture.
        seed: what decides the path; the same seed with more frames may give another path.
        frames: number of cameras.
        speed: mean distance between neighbouring cameras, in metres.
        aspect: width / height of the pictures (pixels are square).

    Returns:
        c2w of every frame, and fx, fy, cx, cy normalised by width and height, the same for all frames.

    Raises:
        ValueError: frames, speed or aspect is not positive.
    """
    for name, value in (("frames", frames), ("speed", speed), ("aspect", aspect)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
    rng = np.random.default_rng(seed)
    fy = rng.uniform(0.78, 1.0)
    intrinsics = np.array([fy / aspect, fy, 0.5, 0.5])
    distance = speed * np.arange(frames)
    ends_and_middle = distance[[0, frames // 2, -1]]

    def score(walk: _Walk) -> float:
        return _score(room, _poses(walk, ends_and_middle), intrinsics)

    walk = max(_clear_walks(room, rng, distance), key=score, default=None) or _standing(room, rng)
    return _poses(walk, distance), intrinsics


def to_pixels(intrinsics: Float[np.ndarray, "4"], width: int, height: int) -> Float[np.ndarray, "4"]:
    """fx, fy, cx, cy in pixels from their normalised form."""
    return intrinsics * np.array([width, height, width, height])


# ---------------------------------------------------------------- drawing walks


def _draw(room: Room, rng: np.random.Generator) -> _Walk:
    margin = min(WALL_CLEARANCE, 0.4 * room.size.min())
    start = rng.uniform([margin, margin], room.size[[0, 2]] - margin)
    inwards = room.size[[0, 2]] / 2 - start
    yaw = float(np.arctan2(inwards[0], inwards[1])) + rng.normal(0, 0.9)
    turn = rng.uniform(0.1, 0.55) * rng.choice([-1, 1])
    return _Walk(
        start=start,
        height=rng.uniform(1.2, 1.65),
        heading=yaw + float(rng.choice(_HEADINGS)) + rng.normal(0, 0.35),
        curvature=rng.uniform(-0.5, 0.5),
        pace=rng.uniform(0.7, 1.4),
        yaw=yaw,
        swing=np.array([turn, rng.uniform(0.7, 1.6), rng.uniform(-1.2, 1.2)]),
        pitch=rng.uniform(-0.22, 0.04),
        shake=np.stack([rng.uniform(4, 16, (6, 3)), rng.uniform(0, 2 * np.pi, (6, 3))], axis=-1),
    )


def _standing(room: Room, rng: np.random.Generator) -> _Walk:
    """For a room too full to walk in: look around from its clearest spot."""
    spots = rng.uniform([0.1, 0.1], [0.9, 0.9], (500, 2)) * room.size[[0, 2]]
    walk = _draw(room, rng)
    start = spots[np.argmax(_clearance(room, spots))]
    return replace(walk, start=start, pace=0.0)


def _clear_walks(room: Room, rng: np.random.Generator, distance: np.ndarray) -> list[_Walk]:
    """Walks that keep clear of everything; fewer than wanted where the room is full."""
    walks: list[_Walk] = []
    sparse = distance[:: max(1, len(distance) // 40)]
    for _ in range(_ATTEMPTS):
        walk = _draw(room, rng)
        ground = _ground(walk, np.append(sparse, distance[-1]))
        if _clearance(room, ground).min() > 0.02:
            walks.append(walk)
        if len(walks) == _CANDIDATES:
            break
    return walks


def _clearance(room: Room, ground: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    """How much further than demanded every point (x, z) is from walls and furniture; negative if too near."""
    walls = np.minimum(ground, room.size[[0, 2]] - ground).min(axis=1) - WALL_CLEARANCE
    if not len(room.obstacles):
        return walls
    return np.minimum(walls, floor_distance(ground, room.obstacles).min(axis=1) - FURNITURE_CLEARANCE)


# ---------------------------------------------------------------- from a walk to cameras


def _ground(walk: _Walk, distance: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """x, z on the curve: an arc of constant curvature, walked there and back if it is long."""
    walked = walk.pace * distance
    if walked[-1] > _LONGEST_WALK:
        walked = _LONGEST_WALK / 2 * (1 - np.cos(2 * walked / _LONGEST_WALK))
    bend = walk.curvature * walked / 2
    chord = walked * np.sinc(bend / np.pi)
    angle = walk.heading + bend
    return walk.start + chord[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _poses(walk: _Walk, distance: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 4 4"]:
    waves = np.sin(walk.shake[..., 0] * distance[:, None, None] + walk.shake[..., 1]).mean(axis=-1)
    sway = waves * np.array([0.012, 0.012, 0.012, 0.012, 0.012, 0.008])
    amplitude, rate, phase = walk.swing
    yaw = walk.yaw + amplitude * np.sin(rate * distance + phase) + sway[:, 3]
    ground = _ground(walk, distance)
    c2w = np.tile(np.eye(4), (len(distance), 1, 1))
    c2w[:, :3, :3] = _rotation(yaw, walk.pitch + sway[:, 4], sway[:, 5])
    c2w[:, :3, 3] = np.stack([ground[:, 0], np.full(len(ground), -walk.height), ground[:, 1]], axis=1)
    c2w[:, :3, 3] += sway[:, :3]
    return c2w


def _rotation(
    yaw: Float[np.ndarray, "n"], pitch: Float[np.ndarray, "n"], roll: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3 3"]:
    """c2w rotations: roll about z, then pitch about x (up is positive), then yaw about y (right is positive)."""

    def about(axis: int, angle: np.ndarray) -> np.ndarray:
        i = (axis + 1) % 3
        j = (axis + 2) % 3
        matrix = np.tile(np.eye(3), (len(angle), 1, 1))
        matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
        matrix[:, j, i] = np.sin(angle)
        matrix[:, i, j] = -np.sin(angle)
        return matrix

    return about(1, yaw) @ about(0, pitch) @ about(2, roll)


def _score(room: Room, c2w: Float[np.ndarray, "n 4 4"], intrinsics: Float[np.ndarray, "4"]) -> float:
    """How much there is to see: many faces at many depths, nothing that blocks the view, in the worst frame."""
    width, height = _GLANCE
    fxfycxcy = to_pixels(intrinsics, width, height)
    scores = []
    for pose in c2w:
        face, depth = cast(room.faces, Pinhole(pose, fxfycxcy, width, height))
        near, middle = np.percentile(depth, [5, 50])
        blocked = max(0.0, 0.8 - near) + max(0.0, 2.0 - middle)
        scores.append(len(np.unique(face)) / 40 + min(depth.std(), 2.0) / 2 - 2.0 * blocked)
    return float(min(scores))
