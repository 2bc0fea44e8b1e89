"""Cameras: conventions, rays, pose normalisation and camera paths.

Axes follow OpenCV (x right, y down, z forward); `c2w` maps camera to world; `fxfycxcy` is in pixels of the
image the camera belongs to; the centre of the first pixel is at (0.5, 0.5).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

# Camera centres closer together than this share of their distance to the origin count as one point.
_SAME_PLACE = 1e-6


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of one image size; leading dimensions are free (scene, view, ...)."""

    c2w: Float[Tensor, "*n 4 4"]
    fxfycxcy: Float[Tensor, "*n 4"]
    height: int
    width: int

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.fxfycxcy.shape[:-1]

    def __getitem__(self, index: Any) -> "Cameras":
        """Index the leading dimensions."""
        return replace(self, c2w=self.c2w[index], fxfycxcy=self.fxfycxcy[index])

    def flatten(self) -> "Cameras":
        """All leading dimensions as one."""
        return replace(self, c2w=self.c2w.reshape(-1, 4, 4), fxfycxcy=self.fxfycxcy.reshape(-1, 4))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Cameras":
        """The same cameras on another device."""
        c2w = self.c2w.to(device, non_blocking=non_blocking)
        return replace(self, c2w=c2w, fxfycxcy=self.fxfycxcy.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Cameras":
        """The same cameras in page-locked memory."""
        return replace(self, c2w=self.c2w.pin_memory(), fxfycxcy=self.fxfycxcy.pin_memory())


@dataclass(frozen=True)
class Views:
    """Images with their cameras: float in [0, 1], or uint8 while they travel."""

    images: Shaped[Tensor, "*n 3 h w"]
    cameras: Cameras

    def __getitem__(self, index: Any) -> "Views":
        """Index the leading dimensions."""
        return replace(self, images=self.images[index], cameras=self.cameras[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Views":
        """The same views on another device."""
        images = self.images.to(device, non_blocking=non_blocking)
        return replace(self, images=images, cameras=self.cameras.to(device, non_blocking))

    def pin_memory(self) -> "Views":
        """The same views in page-locked memory."""
        return replace(self, images=self.images.pin_memory(), cameras=self.cameras.pin_memory())

    def to_float(self) -> "Views":
        """The same views with float32 images in [0, 1]."""
        if self.images.dtype != torch.uint8:
            return self
        return replace(self, images=self.images.float() / 255)


def rays(cameras: Cameras) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n h w 3"]]:
    """Ray origins and unit directions through the pixel centres, in world coordinates."""
    device, dtype = cameras.c2w.device, cameras.c2w.dtype
    x = torch.arange(cameras.width, device=device, dtype=dtype) + 0.5
    y = torch.arange(cameras.height, device=device, dtype=dtype) + 0.5
    fx, fy, cx, cy = cameras.fxfycxcy[..., None, None].unbind(-3)
    u, v = ((x - cx) / fx)[..., None], ((y[:, None] - cy) / fy)[..., None]
    # Written out, since a matrix product would run in reduced precision under autocast or TF32.
    right, down, forward = cameras.c2w[..., None, None, :3, :3].unbind(-1)
    directions = right * u + down * v + forward
    return cameras.c2w[..., :3, 3], torch.nn.functional.normalize(directions, dim=-1)


def plucker(cameras: Cameras) -> Float[Tensor, "*n 6 h w"]:
    """Plücker coordinates (o x d, d) of every pixel's ray, moment first (paper section 3.1)."""
    origins, directions = rays(cameras)
    moments = torch.linalg.cross(origins[..., None, None, :].expand_as(directions), directions)
    return rearrange(torch.cat([moments, directions], dim=-1), "... h w c -> ... c h w")


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def mean_camera(c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "4 4"]:
    """The average camera: mean centre, mean z axis as forward, mean y axis (made orthogonal) as down.

    Where the axes cancel out or coincide (cameras facing one another), the first camera's axes stand in.
    """
    forward, down = c2w[:, :3, 2].mean(0), c2w[:, :3, 1].mean(0)
    if np.linalg.norm(np.cross(down, forward)) < 1e-6:
        forward, down = c2w[0, :3, 2], c2w[0, :3, 1]
    forward = _unit(forward)
    right = _unit(np.cross(down, forward))
    mean = np.eye(4)
    mean[:3, :3] = np.stack([right, _unit(np.cross(forward, right)), forward], axis=1)
    mean[:3, 3] = c2w[:, :3, 3].mean(0)
    return mean


def normalize_poses(
    c2w: Float[np.ndarray, "v 4 4"],
    scene_scale_factor: float,
    reference: Float[np.ndarray, "r 4 4"] | None = None,
) -> Float[np.ndarray, "v 4 4"]:
    """Express cameras in the mean camera's frame and scale positions to |component| <= 1/scene_scale_factor.

    Args:
        c2w: cameras to normalise.
        scene_scale_factor: the largest position component of the reference becomes 1 / this.
        reference: the cameras that set frame and scale; all of `c2w` by default, as the published weights
            were trained. Pass the input views where a render must not depend on the other targets.

    Cameras that all stand in one place keep their positions at (nearly) zero: there is no scale to divide by.
    """
    reference = c2w if reference is None else reference
    to_mean = np.linalg.inv(mean_camera(reference))
    extent = np.abs((to_mean @ reference)[:, :3, 3]).max()
    normalized = to_mean @ c2w
    if extent > _SAME_PLACE * (1e-6 + np.abs(reference[:, :3, 3]).max()):
        normalized[:, :3, 3] /= scene_scale_factor * extent
    return normalized


def nearest_order(centres: Float[np.ndarray, "v 3"]) -> list[int]:
    """Visit the first camera, then always the nearest one not yet visited."""
    order, left = [0], set(range(1, len(centres)))
    while left:
        here = centres[order[-1]]
        order.append(min(left, key=lambda i: (float(np.linalg.norm(centres[i] - here)), i)))
        left.remove(order[-1])
    return order


def _interpolate_leg(start: np.ndarray, end: np.ndarray, num_frames: int) -> np.ndarray:
    """`num_frames` poses from start to end, both included: rotation by slerp, position linear."""
    time = np.linspace(0.0, 1.0, num_frames)
    leg = np.tile(np.eye(4), (num_frames, 1, 1))
    ends = Rotation.from_matrix(np.stack([start[:3, :3], end[:3, :3]]))
    leg[:, :3, :3] = Slerp([0.0, 1.0], ends)(time).as_matrix()
    leg[:, :3, 3] = (1 - time)[:, None] * start[:3, 3] + time[:, None] * end[:3, 3]
    return leg


def interpolate_path(cameras: Cameras, num_frames: int, loop: bool = True, order: bool = False) -> Cameras:
    """A path through the cameras [v]: `num_frames` poses a leg, both ends of each leg included.

    Args:
        cameras: at least one camera, one leading dimension.
        num_frames: poses per leg, at least 2.
        loop: add a leg from the last camera back to the first.
        order: visit the nearest unvisited camera next instead of the given order.
    """
    c2w = cameras.c2w.detach().double().cpu().numpy()
    fxfycxcy = cameras.fxfycxcy.detach().double().cpu().numpy()
    stops = nearest_order(c2w[:, :3, 3]) if order else list(range(len(c2w)))
    legs = list(zip(stops, stops[1:] + stops[:1] if loop else stops[1:], strict=False)) or [(0, 0)]
    poses = [_interpolate_leg(c2w[a], c2w[b], num_frames) for a, b in legs]
    time = np.linspace(0.0, 1.0, num_frames)[:, None]
    intrinsics = [(1 - time) * fxfycxcy[a] + time * fxfycxcy[b] for a, b in legs]
    return replace(
        cameras,
        c2w=torch.from_numpy(np.concatenate(poses)).to(cameras.c2w),
        fxfycxcy=torch.from_numpy(np.concatenate(intrinsics)).to(cameras.fxfycxcy),
    )
