"""Solids that objects are composed of: where rays meet them, and images laid over their surfaces.

A shape lies in a frame of its own about the origin, z upwards. A ray is origin + t * direction. A solid is a shape
placed in the world by an affine map, which leaves t as it is: rays are brought into the frame of the shape, and the
nearest solid has the smallest t.

A surface consists of patches. A point of a patch is named by (u, v) in [0, 1], u to the right and v downwards seen from
outside, as the columns and rows of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull

from data.synthetic.furniture import Material

Number = float | int  # the run-time type check takes no int for a float
# x, y and z of points or directions: arrays or single numbers, which broadcast.
Vector = Sequence[Any]
Values = Sequence[Number] | np.ndarray

# Stands in for a divisor of zero.
_TINY = 1e-12
# How near its end, in half heights, a point of a lathed solid lies on its cap.
_ON_CAP = 1e-3
# Of the search for a torus along a ray: steps, and the distance, in radii of the ring, at which it is reached.
_STEPS = 120
_REACHED = 5e-4
_PROFILE_POINTS = 65


class Shape(ABC):
    """A shape in its own frame; `closes` says whether its patch 0 meets itself where u is 0 and 1."""

    closes: ClassVar[bool] = False

    @property
    @abstractmethod
    def half(self) -> Float[np.ndarray, "3"]:
        """Half sizes of the box around it."""

    @property
    @abstractmethod
    def patches(self) -> Sequence[int]:
        """The numbers of its patches."""

    @abstractmethod
    def hit(self, origin: Vector, direction: Vector, after: float) -> np.ndarray:
        """t at which rays enter it, infinite where they miss it or have left it at `after`."""

    @abstractmethod
    def locate(self, points: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "n"], np.ndarray, np.ndarray]:
        """Patch, u and v of points on its surface."""

    @abstractmethod
    def surface(self, patch: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [..., 3] of a patch and outward normals there, of any length."""


# ---------------------------------------------------------------- spheres, cylinders, cones, vases


@dataclass(frozen=True)
class Lathed(Shape):
    """What a lathe makes: at height z in [-1, 1] its radius is the square root of a + b z + c z², flat at both ends."""

    closes = True
    a: float
    b: float
    c: float

    @property
    def half(self) -> Float[np.ndarray, "3"]:
        radius = self._profile[0].max()
        return np.array([radius, radius, 1.0])

    @property
    def patches(self) -> Sequence[int]:
        """The side, and the caps at the top and the bottom where there are any."""
        return [0, *(patch for patch, end in ((1, 1.0), (2, -1.0)) if self.radius(end) > _ON_CAP)]

    def radius(self, z: Any) -> Any:
        """The radius at a height."""
        return np.sqrt(np.maximum(self.a + z * (self.b + z * self.c), 0))

    @cached_property
    def _profile(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radius, height and share of the way along the side, from the top down."""
        z = np.cos(np.linspace(0, np.pi, _PROFILE_POINTS))
        radius = self.radius(z)
        way = np.append(0, np.cumsum(np.hypot(np.diff(radius), np.diff(z))))
        return radius, z, way / way[-1]

    def hit(self, origin: Vector, direction: Vector, after: float) -> np.ndarray:
        """Inside, x² + y² - (a + b z + c z²) is negative: one stretch of a ray, or (c > 0) all but one."""
        x, y, z = origin
        dx, dy, dz = direction
        dz = np.where(np.abs(dz) < _TINY, np.float32(_TINY), dz)
        first = (-1 - z) / dz
        second = (1 - z) / dz
        start = np.minimum(first, second)
        end = np.maximum(first, second)
        a = dx * dx + dy * dy - self.c * dz * dz
        b = x * dx + y * dy - (self.b / 2 + self.c * z) * dz
        low, high = _roots(a, b, x * x + y * y - self.a - z * (self.b + z * self.c))
        enter = np.maximum(low, start)
        leave = np.minimum(high, end)
        if self.c > 0:
            around = a < 0
            beyond = np.where(np.isnan(low), start, np.maximum(high, start))
            before = np.where(np.isnan(low), -np.inf, np.minimum(low, end))
            is_before = (start < before) & (before > after)
            enter = np.where(around, np.where(is_before, start, beyond), enter)
            leave = np.where(around, np.where(is_before, before, end), leave)
        return np.where((enter < leave) & (leave > after), enter, np.inf)

    def locate(self, points: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "n"], np.ndarray, np.ndarray]:
        x, y, z = points.T
        _, heights, way = self._profile
        patch = np.zeros(len(points), np.intp)
        u = np.arctan2(y, x) / (2 * np.pi) % 1
        v = np.interp(-z, -heights, way)
        for cap in self.patches[1:]:
            end = 1.0 if cap == 1 else -1.0
            on = np.flatnonzero(z * end > 1 - _ON_CAP)
            patch[on] = cap
            u[on] = 0.5 + x[on] / (2 * self.radius(end))
            v[on] = 0.5 - end * y[on] / (2 * self.radius(end))
        return patch, u, v

    def surface(self, patch: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if patch:
            return self._cap(1.0 if patch == 1 else -1.0, u, v)
        _, heights, way = self._profile
        z = np.interp(v, way, heights)
        angle = 2 * np.pi * u
        x = self.radius(z) * np.cos(angle)
        y = self.radius(z) * np.sin(angle)
        # At a tip of no radius the normal is along the axis.
        slope = self.b / 2 + self.c * z
        return np.stack([x, y, z], axis=-1), np.stack([x, y, -slope + 0 * u], axis=-1)

    def _cap(self, end: float, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A cap fills the circle in its square."""
        x = 2 * u - 1
        y = end * (1 - 2 * v)
        outside = np.maximum(np.hypot(x, y), 1)
        radius = self.radius(end)
        points = np.stack([radius * x / outside, radius * y / outside, np.full_like(x, end)], axis=-1)
        return points, np.broadcast_to([0.0, 0.0, end], points.shape)


def lathed(bottom: Number, middle: Number, top: Number) -> Lathed:
    """The lathed shape of three radii: (1, 1, 1) is a cylinder, (0, 1, 0) a sphere, (1, 0.5, 0) a cone."""
    low = bottom**2
    high = top**2
    return Lathed(float(middle**2), (high - low) / 2, (high + low) / 2 - middle**2)


def _roots(a: Any, b: Any, c: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both solutions of a t² + 2 b t + c = 0, the smaller one first; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        q = -(b + np.copysign(np.sqrt(b * b - a * c), b))
        one = q / np.where(np.abs(a) < _TINY, np.float32(_TINY), a)
        other = c / q
    return np.minimum(one, other), np.maximum(one, other)


# ---------------------------------------------------------------- boxes, prisms, roofs, stones


@dataclass(frozen=True)
class Polyhedron(Shape):
    """The points p with normals @ p <= offsets; `frames` has the corner, edge u and edge v of a rectangle a face."""

    normals: Float[np.ndarray, "f 3"]
    offsets: Float[np.ndarray, "f"]
    frames: Float[np.ndarray, "f 3 3"]
    size: Float[np.ndarray, "3"]

    @property
    def half(self) -> Float[np.ndarray, "3"]:
        return self.size

    @property
    def patches(self) -> Sequence[int]:
        return range(len(self.normals))

    def hit(self, origin: Vector, direction: Vector, after: float) -> np.ndarray:
        """A ray enters where it has passed all faces that it meets from outside, and leaves at the first other one."""
        enter: Any = np.float32(-np.inf)
        leave: Any = np.float32(np.inf)
        for normal, offset in zip(self.normals.astype(np.float32), self.offsets.astype(np.float32), strict=True):
            along = _dot(direction, normal)
            along = np.where(np.abs(along) < _TINY, np.float32(_TINY), along)
            t = (offset - _dot(origin, normal)) / along
            inwards = along < 0
            enter = np.maximum(enter, np.where(inwards, t, -np.inf))
            leave = np.minimum(leave, np.where(inwards, np.inf, t))
        return np.where((enter < leave) & (leave > after), enter, np.inf)

    def locate(self, points: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "n"], np.ndarray, np.ndarray]:
        face = np.zeros(len(points), np.intp)
        height = np.full(len(points), -np.inf)
        for number in self.patches:
            own = points @ self.normals[number] - self.offsets[number]
            face[own > height] = number
            height = np.maximum(own, height)
        u = np.zeros(len(points))
        v = np.zeros(len(points))
        for number in self.patches:
            on = np.flatnonzero(face == number)
            corner, *edges = self.frames[number]
            u[on], v[on] = ((points[on] - corner) @ (edge / (edge @ edge)) for edge in edges)
        return face, u, v

    def surface(self, patch: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        corner, edge_u, edge_v = self.frames[patch]
        points = corner + u[..., None] * edge_u + v[..., None] * edge_v
        return points, np.broadcast_to(self.normals[patch], points.shape)


def _dot(vector: Vector, normal: np.ndarray) -> Any:
    """The dot product, without the coordinates in which the normal is 0."""
    return sum((part * share for part, share in zip(vector, normal, strict=True) if share), np.float32(0))


def hull(corners: Float[np.ndarray, "n 3"]) -> Polyhedron:
    """The convex polyhedron around points, moved so that the box around it lies about the origin."""
    corners = corners - (corners.min(axis=0) + corners.max(axis=0)) / 2
    planes = np.unique(np.round(ConvexHull(corners).equations, 6), axis=0)
    normals = planes[:, :3]
    offsets = -planes[:, 3]
    frames = [_frame(n, corners[corners @ n > h - 1e-4]) for n, h in zip(normals, offsets, strict=True)]
    return Polyhedron(normals, offsets, np.array(frames), np.abs(corners).max(axis=0))


def _frame(normal: Float[np.ndarray, "3"], corners: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 3"]:
    """Corner, edge u and edge v of the rectangle around the corners of a face, v as far downwards as can be."""
    down = np.array([0.0, 0.0, -1.0]) if abs(normal[2]) < 0.99 else np.array([0.0, -1.0, 0.0])
    v = down - (down @ normal) * normal
    axes = np.stack([np.cross(normal, v), v]) / np.linalg.norm(v)
    low = (corners @ axes.T).min(axis=0)
    size = (corners @ axes.T).max(axis=0) - low
    return np.stack([low @ axes + (corners[0] @ normal) * normal, size[0] * axes[0], size[1] * axes[1]])


def prism(sides: int, top: float = 1.0) -> Polyhedron:
    """A prism on a regular polygon, its top `top` times as wide as its bottom: with 4 sides a box."""
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) / np.abs(np.cos(angle)).max()
    rings = [np.column_stack([ring * scale, np.full(sides, z)]) for scale, z in ((1.0, -1.0), (max(top, 1e-3), 1.0))]
    return hull(np.concatenate(rings))


# ---------------------------------------------------------------- rings


@dataclass(frozen=True)
class Torus(Shape):
    """A ring of radius 1 about the z axis; `tube` is the radius of its tube."""

    closes = True
    tube: float

    @property
    def half(self) -> Float[np.ndarray, "3"]:
        return np.array([1 + self.tube, 1 + self.tube, self.tube])

    @property
    def patches(self) -> Sequence[int]:
        return [0]

    def hit(self, origin: Vector, direction: Vector, after: float) -> np.ndarray:
        """By steps as long as the distance to the surface."""
        shape = np.broadcast_shapes(origin[0].shape, direction[0].shape)
        result = np.full(shape, np.inf, np.float32)
        start, end = self._stretch(origin, direction)
        start = np.maximum(start, after)
        near = start < end
        rays = [np.broadcast_to(part, shape)[near] for part in (*origin, *direction)]
        result[near] = self._march(rays[:3], rays[3:], start[near], end[near])
        return result

    def _stretch(self, origin: Vector, direction: Vector) -> tuple[np.ndarray, np.ndarray]:
        """Where rays are in the ball around the ring and between the planes above and below it."""
        z = origin[2]
        dz = np.where(np.abs(direction[2]) < _TINY, np.float32(_TINY), direction[2])
        planes = [(-self.tube - z) / dz, (self.tube - z) / dz]
        a = sum(part * part for part in direction)
        b = sum(one * other for one, other in zip(origin, direction, strict=True))
        low, high = _roots(a, b, sum(part * part for part in origin) - np.float32((1 + self.tube) ** 2))
        return np.fmax(low, np.minimum(*planes)), np.where(
            np.isnan(low), -np.inf, np.minimum(high, np.maximum(*planes))
        )

    def _march(self, origin: Vector, direction: Vector, t: np.ndarray, end: np.ndarray) -> np.ndarray:
        """t of rays [n] that reach it between t and `end`; those on their way are few after some steps."""
        result = np.full(len(t), np.inf, np.float32)
        index = np.arange(len(t))
        speed = np.sqrt(sum(part * part for part in direction))
        for _ in range(_STEPS):
            x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
            across = np.sqrt(x * x + y * y) - 1
            distance = np.sqrt(across * across + z * z) - np.float32(self.tube)
            reached = distance < _REACHED
            result[index[reached]] = t[reached]
            t = t + distance / speed
            left = np.flatnonzero(~reached & (t < end))
            if not len(left):
                break
            origin = [part[left] for part in origin]
            direction = [part[left] for part in direction]
            index = index[left]
            t = t[left]
            end = end[left]
            speed = speed[left]
        return result

    def locate(self, points: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "n"], np.ndarray, np.ndarray]:
        x, y, z = points.T
        u = np.arctan2(y, x) / (2 * np.pi) % 1
        v = np.arctan2(-z, np.hypot(x, y) - 1) / (2 * np.pi) % 1
        return np.zeros(len(points), np.intp), u, v

    def surface(self, patch: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        around = 2 * np.pi * u
        about = 2 * np.pi * v
        normals = np.stack([np.cos(about) * np.cos(around), np.cos(about) * np.sin(around), -np.sin(about)], axis=-1)
        ring = np.stack([np.cos(around), np.sin(around), 0 * around], axis=-1)
        return ring + self.tube * normals, normals


# ---------------------------------------------------------------- placed in the world


@dataclass(frozen=True)
class Solid:
    """A shape with a surface of one material; `pose` maps its frame to the world."""

    shape: Shape
    pose: Float[np.ndarray, "4 4"]
    material: Material

    @cached_property
    def _inverse(self) -> Float[np.ndarray, "4 4"]:
        return np.linalg.inv(self.pose)

    def moved(self, matrix: Float[np.ndarray, "4 4"]) -> "Solid":
        """The solid after an affine map of the world."""
        return replace(self, pose=matrix @ self.pose)

    def local_points(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Points of the world in the frame of the shape."""
        inverse = self._inverse.astype(points.dtype)
        return points @ inverse[:3, :3].T + inverse[:3, 3]

    def local_directions(self, directions: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Directions of the world in the frame of the shape."""
        return directions @ self._inverse[:3, :3].T.astype(directions.dtype)

    def surface(self, patch: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [..., 3] of a patch in the world and unit normals there."""
        points, normals = self.shape.surface(patch, u, v)
        normals = normals @ self._inverse[:3, :3]
        length = np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), _TINY)
        return points @ self.pose[:3, :3].T + self.pose[:3, 3], normals / length

    @cached_property
    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Those of the box around it, in the world."""
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
        return (signs * self.shape.half) @ self.pose[:3, :3].T + self.pose[:3, 3]


def place(shape: Shape, material: Material, centre: Values, half: Values, turn: np.ndarray | None = None) -> Solid:
    """A solid whose box has the half sizes `half`, is turned by the rotation `turn` and then moved to `centre`."""
    pose = np.eye(4)
    pose[:3, :3] = (np.eye(3) if turn is None else turn) * (np.asarray(half) / shape.half)
    pose[:3, 3] = centre
    return Solid(shape, pose, material)
