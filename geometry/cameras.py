"""Cameras: conventions, rays and Plücker coordinates.

Axes follow OpenCV (x right, y down, z forward); `c2w` maps camera to world; `fxfycxcy` is in pixels of the
image the camera belongs to; the centre of the first pixel is at (0.5, 0.5).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor


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
    u, v = _slopes(cameras)
    # Written out, since a matmul would run in reduced precision under autocast or TF32.
    right, down, forward = cameras.c2w[..., None, None, :3, :3].unbind(-1)
    directions = right * u + down * v + forward
    return cameras.c2w[..., :3, 3], torch.nn.functional.normalize(directions, dim=-1)


def _slopes(cameras: Cameras) -> tuple[Float[Tensor, "*n 1 w 1"], Float[Tensor, "*n h 1 1"]]:
    """How far to the right of the optical axis and below it the pixels' rays are at depth 1."""
    device = cameras.c2w.device
    dtype = cameras.c2w.dtype
    x = torch.arange(cameras.width, device=device, dtype=dtype) + 0.5
    y = torch.arange(cameras.height, device=device, dtype=dtype) + 0.5
    fx, fy, cx, cy = cameras.fxfycxcy[..., None, None].unbind(-3)
    return ((x - cx) / fx)[..., None], ((y[:, None] - cy) / fy)[..., None]


def plucker(cameras: Cameras) -> Float[Tensor, "*n 6 h w"]:
    """Plücker coordinates (o x d, d) of every pixel's ray, moment first (paper section 3.1)."""
    origins, directions = rays(cameras)
    moments = torch.linalg.cross(origins[..., None, None, :].expand_as(directions), directions)
    return rearrange(torch.cat([moments, directions], dim=-1), "... h w c -> ... c h w")


def camera_rays(cameras: Cameras) -> Float[Tensor, "*n 6 h w"]:
    """Unit directions of the pixels' rays in the camera's own frame, after moments of zero: they tell of no pose."""
    u, v = torch.broadcast_tensors(*_slopes(cameras))
    directions = torch.nn.functional.normalize(torch.cat([u, v, torch.ones_like(u)], dim=-1), dim=-1)
    return rearrange(torch.cat([torch.zeros_like(directions), directions], dim=-1), "... h w c -> ... c h w")


def no_rays(cameras: Cameras) -> Float[Tensor, "*n 6 h w"]:
    """Zeros in the place of rays."""
    return cameras.c2w.new_zeros(*cameras.shape, 6, cameras.height, cameras.width)


def orient(forward: Float[np.ndarray, "*n 3"], down: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3 3"]:
    """Rotations (columns x, y, z) that look along `forward`, their y axis as close to `down` as that allows."""
    forward = _unit(forward)
    right = _unit(np.cross(down, forward))
    return np.stack([right, _unit(np.cross(forward, right)), forward], axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
