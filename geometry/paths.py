"""Camera paths of videos: through the input cameras, around them or what they see, or through a saved list."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from geometry.cameras import Cameras, orient
from geometry.normalization import mean_camera
from geometry.orbit import orbit_around
from utils.errors import InputError
from utils.fields import bounded, file_path
from utils.text import shown

# In units of the inputs' extent, the largest distance of an input camera from their mean centre.
_SPIRAL_RADIUS = 0.3
_WOBBLE_RADIUS = 0.15
_FOCUS = 4.0
_SPIRAL_TURNS = 2
# Stands in for a smaller extent; normalised positions reach 0.74 along an axis.
_LEAST_EXTENT = 0.2


@dataclass(frozen=True)
class VideoConfig:
    """The path of videos.

    `traj_type` is one of:

    - `interpolate`: from input camera to input camera, `num_frames` poses a leg, both ends included;
    - `spiral`: two turns around the mean camera, swaying forward in one and back in the other, `num_frames` poses a
      turn, all looking at one point in front;
    - `wobble`: a circle around each input camera in turn, `num_frames` poses a circle, looking at a point in front;
    - `orbit`: a circle of `num_frames` poses around what the input cameras look at, at their mean distance and height
      over it, as around an object;
    - `through`: through the saved cameras of `cameras_path`, `num_frames` poses in all.

    `order_poses` visits the nearest unvisited camera next. `loop_video` goes back to the first camera, through saved
    ones the way it came; circles are closed without it. `fps` is in frames a second. `cameras_path` is a file, or a
    folder with `<scene>.json` for every scene.
    """

    traj_type: Literal["interpolate", "spiral", "wobble", "orbit", "through"] = "interpolate"
    num_frames: int = bounded(60, 2, 1_000_000)
    loop_video: bool = True
    order_poses: bool = False
    fps: int = bounded(30, 1, 1000)
    cameras_path: str = file_path("")


def check_video_config(cfg: VideoConfig) -> None:
    """Raises InputError, its first word the field, for a path that cannot be."""
    if bool(cfg.cameras_path) != (cfg.traj_type == "through"):
        raise InputError(
            f"cameras_path is {shown(cfg.cameras_path)} and traj_type {shown(cfg.traj_type)}: "
            "`through` needs a list of cameras, and nothing else takes one"
        )


def camera_path(cfg: VideoConfig, inputs: Cameras, saved: Cameras | None = None) -> Cameras:
    """The path [n] that `cfg` asks for, on the device of the input cameras [v].

    Args:
        saved: the saved cameras [k] of `through`, in the frame of the inputs.
    """
    if cfg.traj_type == "spiral":
        return spiral_path(inputs, cfg.num_frames)
    if cfg.traj_type == "wobble":
        return wobble_path(inputs, cfg.num_frames, cfg.order_poses)
    if cfg.traj_type == "orbit":
        return orbit_path(inputs, cfg.num_frames)
    if cfg.traj_type == "interpolate":
        return interpolate_path(inputs, cfg.num_frames, cfg.loop_video, cfg.order_poses)
    assert saved is not None, "`through` needs saved cameras"
    return through_path(saved, cfg.num_frames, cfg.loop_video, cfg.order_poses).to(inputs.c2w.device)


def nearest_order(centres: Float[np.ndarray, "v 3"]) -> list[int]:
    """Visit the first camera, then always the nearest one not yet visited."""
    order = [0]
    left = set(range(1, len(centres)))
    while left:
        here = centres[order[-1]]
        order.append(min(left, key=lambda i: (float(np.linalg.norm(centres[i] - here)), i)))
        left.remove(order[-1])
    return order


def interpolate_path(cameras: Cameras, num_frames: int, loop: bool = True, order: bool = False) -> Cameras:
    """A path through the cameras [v]: `num_frames` poses a leg, both ends of each leg included.

    Args:
        num_frames: poses per leg, at least 2.
        loop: add a leg from the last camera back to the first.
        order: visit the nearest unvisited camera next instead of the given order.
    """
    leg = np.linspace(0.0, 1.0, num_frames)
    stops = _stops(cameras, order)
    stops += stops[:1] if loop else []
    times = np.concatenate([start + leg for start in range(max(1, len(stops) - 1))])
    return _pass_through(cameras, stops, times)


def through_path(cameras: Cameras, num_frames: int, loop: bool = True, order: bool = False) -> Cameras:
    """A path of `num_frames` poses through the cameras [k], and back the same way if it is to loop.

    Every leg takes as long as any other: as many poses as cameras, not looped, are the cameras themselves.
    """
    stops = _stops(cameras, order)
    stops += stops[-2::-1] if loop else []
    return _pass_through(cameras, stops, np.linspace(0.0, len(stops) - 1, num_frames))


def spline_path(cameras: Cameras, num_frames: int) -> Cameras:
    """A smooth path of `num_frames` poses through the cameras [k], every leg as long in time as any other.

    Positions follow a natural cubic spline, rotations a spline of continuous angular acceleration, intrinsics straight
    lines, so that they do not overshoot; as many poses as cameras are the cameras themselves.
    """
    from scipy.interpolate import CubicSpline  # slow to import and needed only here
    from scipy.spatial.transform import Rotation, RotationSpline

    c2w, fxfycxcy = _arrays(cameras)
    if len(c2w) == 1:
        return cameras[[0] * num_frames]
    places = np.arange(len(c2w), dtype=float)
    times = np.linspace(0.0, len(c2w) - 1, num_frames)
    path = np.tile(np.eye(4), (num_frames, 1, 1))
    path[:, :3, :3] = RotationSpline(places, Rotation.from_matrix(c2w[:, :3, :3]))(times).as_matrix()
    path[:, :3, 3] = CubicSpline(places, c2w[:, :3, 3], bc_type="natural")(times)
    return _like(cameras, path, _linear(times, fxfycxcy))


def _stops(cameras: Cameras, order: bool) -> list[int]:
    return nearest_order(_arrays(cameras)[0][:, :3, 3]) if order else list(range(len(cameras.c2w)))


def _pass_through(cameras: Cameras, stops: Sequence[int], times: Float[np.ndarray, " n"]) -> Cameras:
    """Poses at `times`, camera `stops[i]` standing at time i: rotation by slerp (the short way), the rest linear."""
    from scipy.spatial.transform import Rotation, Slerp  # slow to import

    c2w, fxfycxcy = (values[[*stops, *stops[:1]]] for values in _arrays(cameras))  # a lone camera has a leg, too
    places = np.arange(len(c2w), dtype=float)
    path = np.tile(np.eye(4), (len(times), 1, 1))
    path[:, :3, :3] = Slerp(places, Rotation.from_matrix(c2w[:, :3, :3]))(times).as_matrix()
    path[:, :3, 3] = _linear(times, c2w[:, :3, 3])
    return _like(cameras, path, _linear(times, fxfycxcy))


def _linear(times: np.ndarray, values: Float[np.ndarray, "k c"]) -> Float[np.ndarray, "n c"]:
    return np.stack([np.interp(times, np.arange(len(values)), column) for column in values.T], axis=1)


def spiral_path(cameras: Cameras, num_frames: int) -> Cameras:
    """Two turns around the mean of the cameras [v], `num_frames` poses each; the last pose is the first again.

    The path lies symmetric around the mean camera's centre, and its cameras look at one point in front of that.
    """
    c2w, fxfycxcy = _arrays(cameras)
    angle = np.linspace(0.0, 2 * np.pi * _SPIRAL_TURNS, _SPIRAL_TURNS * num_frames)
    circle = np.stack([np.cos(angle), np.sin(angle), np.sin(angle / _SPIRAL_TURNS)], axis=1)
    path = _around(mean_camera(c2w), _SPIRAL_RADIUS * circle, _extent(c2w))
    return _like(cameras, path, np.tile(fxfycxcy.mean(0), (len(path), 1)))


def wobble_path(cameras: Cameras, num_frames: int, order: bool = False) -> Cameras:
    """A circle of `num_frames` poses around each of the cameras [v] in turn, in its image plane.

    The last pose of a circle is its first again.
    """
    c2w, fxfycxcy = _arrays(cameras)
    stops = _stops(cameras, order)
    angle = np.linspace(0.0, 2 * np.pi, num_frames)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)
    circles = [_around(c2w[stop], _WOBBLE_RADIUS * circle, _extent(c2w)) for stop in stops]
    return _like(cameras, np.concatenate(circles), np.repeat(fxfycxcy[stops], num_frames, axis=0))


def orbit_path(cameras: Cameras, num_frames: int) -> Cameras:
    """A circle of `num_frames` upright poses about the point that the cameras [v] look at; the last pose is the first.

    It has their mean distance from that point and their mean elevation, and begins beside the first of them.
    """
    c2w, fxfycxcy = _arrays(cameras)
    path = orbit_around(c2w, _FOCUS * _extent(c2w)).mean_circle(c2w, num_frames)
    return _like(cameras, path, np.tile(fxfycxcy.mean(0), (len(path), 1)))


def _extent(c2w: Float[np.ndarray, "v 4 4"]) -> float:
    """How far the cameras stand from their mean centre, at most; never so little that a path would not be seen."""
    centres = c2w[:, :3, 3]
    return max(float(np.linalg.norm(centres - centres.mean(0), axis=1).max()), _LEAST_EXTENT)


def _around(
    camera: Float[np.ndarray, "4 4"], offsets: Float[np.ndarray, "n 3"], extent: float
) -> Float[np.ndarray, "n 4 4"]:
    """Cameras at `offsets` (along the camera's axes, in extents) that look at a point in front of `camera`."""
    rotation = camera[:3, :3]
    centre = camera[:3, 3]
    path = np.tile(np.eye(4), (len(offsets), 1, 1))
    path[:, :3, 3] = centre + extent * offsets @ rotation.T
    towards = centre + _FOCUS * extent * rotation[:, 2] - path[:, :3, 3]
    path[:, :3, :3] = orient(towards, np.broadcast_to(rotation[:, 1], towards.shape))
    return path


def _arrays(cameras: Cameras) -> tuple[Float[np.ndarray, "v 4 4"], Float[np.ndarray, "v 4"]]:
    return cameras.c2w.detach().double().cpu().numpy(), cameras.fxfycxcy.detach().double().cpu().numpy()


def _like(cameras: Cameras, c2w: np.ndarray, fxfycxcy: np.ndarray) -> Cameras:
    """Cameras of the same image size, type and device."""
    return replace(
        cameras, c2w=torch.from_numpy(c2w).to(cameras.c2w), fxfycxcy=torch.from_numpy(fxfycxcy).to(cameras.fxfycxcy)
    )
