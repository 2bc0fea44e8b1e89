"""PRoPE: the cameras and places of tokens inside attention, relative to one another.

Li et al., "Cameras as Relative Positional Encoding", NeurIPS 2025. A quarter of a head's channels is turned by the
token's column, a quarter by its row (RoPE), and half of them by its camera's projection P, so that attention sees
P P'⁻¹ of two cameras alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras

# Channels of a head come in eight equal parts: four for projections, two each for columns and rows.
PARTS = 8
_BASE = 100.0


@dataclass(frozen=True)
class TokenCameras:
    """What turns the heads of `n` tokens, in float32.

    Attributes:
        projection: P of each token's camera, from the world to shares of the image around its centre.
        inverse: P⁻¹.
        cos: of the angles of each token's place, those of its column before those of its row.
        sin: of the same angles.
        units: tokens come in stretches with one camera each; every stretch is as long as the greatest common divisor of
            these numbers.
    """

    projection: Float[Tensor, "b n 4 4"]
    inverse: Float[Tensor, "b n 4 4"]
    cos: Float[Tensor, "n a"]
    sin: Float[Tensor, "n a"]
    units: tuple[int, ...]

    @property
    def stretch(self) -> int:
        """So many tokens in a row, from the first on, have the same camera."""
        # Here, since compiled code knows no divisors of numbers that vary.
        return math.gcd(*self.units)

    def __getitem__(self, tokens: slice) -> "TokenCameras":
        """Some of the tokens."""
        start, stop, step = tokens.indices(len(self.cos))
        return TokenCameras(
            self.projection[:, tokens],
            self.inverse[:, tokens],
            self.cos[tokens],
            self.sin[tokens],
            (*self.units, start, stop) if step == 1 else (1,),
        )


def token_cameras(parts: Sequence[Cameras | int], patch_size: int, d_head: int) -> TokenCameras:
    """What turns the tokens of a sequence that consists of `parts`.

    Args:
        parts: cameras [s, v], whose tokens cover `patch_size`² pixels and come view by view, row by row; or a number
            of tokens without a camera, which are turned by the identity. Where parts are of different numbers
            of scenes, the cameras of one scene of the fewer serve several scenes in a row of the others.
        d_head: channels of a head, a multiple of 8.
    """
    cameras = [part for part in parts if isinstance(part, Cameras)]
    b = max(part.shape[0] for part in cameras)
    device = cameras[0].c2w.device
    angles = d_head // PARTS
    turns = [
        _identity(part, b, angles, device) if isinstance(part, int) else _of_views(part, b, patch_size, angles)
        for part in parts
    ]
    return TokenCameras(
        torch.cat([turn.projection for turn in turns], dim=1),
        torch.cat([turn.inverse for turn in turns], dim=1),
        torch.cat([turn.cos for turn in turns]),
        torch.cat([turn.sin for turn in turns]),
        tuple(unit for turn in turns for unit in turn.units),
    )


def _identity(tokens: int, b: int, angles: int, device: torch.device) -> TokenCameras:
    matrix = torch.eye(4, device=device).expand(b, tokens, 4, 4)
    zeros = torch.zeros(tokens, 2 * angles, device=device)
    return TokenCameras(matrix, matrix, zeros + 1, zeros, (tokens,))


def _of_views(cameras: Cameras, b: int, patch_size: int, angles: int) -> TokenCameras:
    rows = cameras.height // patch_size
    columns = cameras.width // patch_size
    place = patch_angles(rows, columns, angles, cameras.c2w.device).repeat(cameras.shape[1], 1)
    each = {"t": b // cameras.shape[0], "n": rows * columns}
    return TokenCameras(
        repeat(projections(cameras), "s v i j -> (s t) (v n) i j", **each),
        repeat(inverse_projections(cameras), "s v i j -> (s t) (v n) i j", **each),
        place.cos(),
        place.sin(),
        (rows * columns,),
    )


def patch_angles(rows: int, columns: int, angles: int, device: torch.device | None = None) -> Float[Tensor, "n a"]:
    """Angles of patches, row by row: column times 100^(-j / angles) for each j, then the row times the same."""
    frequencies = _BASE ** (-torch.arange(angles, device=device, dtype=torch.float32) / angles)
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    places = torch.stack([column.flatten(), row.flatten()], dim=-1)
    return (places[..., None] * frequencies).flatten(1)


def projections(cameras: Cameras) -> Float[Tensor, "*n 4 4"]:
    """P = K w2c in float32, K in shares of the image: [[fx/W, 0, cx/W - ½], [0, fy/H, cy/H - ½], [0, 0, 1]]."""
    fx, fy, cx, cy = _shares(cameras)
    rotation = cameras.c2w.float()[..., :3, :3].mT
    # Written out, since a matmul would run in reduced precision under autocast or TF32.
    position = -(rotation * cameras.c2w.float()[..., None, :3, 3]).sum(-1, keepdim=True)
    x, y, z = torch.cat([rotation, position], dim=-1).unbind(-2)
    return torch.stack([fx * x + cx * z, fy * y + cy * z, z, _last_row(cameras)], dim=-2)


def inverse_projections(cameras: Cameras) -> Float[Tensor, "*n 4 4"]:
    """P⁻¹ = c2w K⁻¹ in float32, in closed form."""
    fx, fy, cx, cy = _shares(cameras)
    x, y, z, position = cameras.c2w.float().unbind(-1)
    return torch.stack([x / fx, y / fy, z - cx / fx * x - cy / fy * y, position], dim=-1)


def _shares(cameras: Cameras) -> tuple[Tensor, ...]:
    """Focal lengths in shares of the image's size, and the principal point from its centre [*n 1] each."""
    fx, fy, cx, cy = cameras.fxfycxcy.float()[..., None, :].unbind(-1)
    return fx / cameras.width, fy / cameras.height, cx / cameras.width - 0.5, cy / cameras.height - 0.5


def _last_row(cameras: Cameras) -> Tensor:
    return cameras.c2w.new_tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float32).expand(*cameras.shape, 4)
