"""PRoPE applied to heads (Li et al., NeurIPS 2025): the plain form; GPUs have a fast one in `model.prope_kernel`."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.relative import PARTS, TokenCameras
from model.fused import HALF


@dataclass(frozen=True)
class Prope:
    """Queries are turned by Pᵀ, keys and values by P⁻¹, results by P; the rotations of places are undone on results.

    The norms of queries and keys come first, in the same pass.

    Args:
        turn: `turn_plainly`, or what computes the same.
    """

    cameras: TokenCameras
    turn: Callable[..., Tensor]

    def queries(self, q: Tensor, norm: nn.RMSNorm | None, tokens: slice | None) -> Tensor:
        """Normalise and turn queries of `tokens`, or of all."""
        own = self._of(tokens)
        return self.turn(q, norm, own.projection, own.cos, own.sin, transposed=True)

    def keys(self, k: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Normalise and turn keys of all tokens."""
        return self.turn(k, norm, self.cameras.inverse, self.cameras.cos, self.cameras.sin)

    def values(self, v: Tensor) -> Tensor:
        """Turn values of all tokens."""
        return self.turn(v, None, self.cameras.inverse, self.cameras.cos, self.cameras.sin)

    def results(self, attended: Tensor, tokens: slice | None) -> Tensor:
        """Turn what attention gives to `tokens`, or to all."""
        own = self._of(tokens)
        return self.turn(attended, None, own.projection, own.cos, own.sin, back=True)

    def _of(self, tokens: slice | None) -> TokenCameras:
        return self.cameras if tokens is None else self.cameras[tokens]


def prope(cameras: TokenCameras) -> Prope:
    """PRoPE in the form that runs fastest where the cameras are."""
    return Prope(cameras, _fast_turn() if cameras.projection.is_cuda else turn_plainly)


@functools.cache
def _fast_turn() -> Callable[..., Tensor]:
    """The kernel, where Triton is that it is written in."""
    if importlib.util.find_spec("triton") is None:
        return turn_plainly
    from model.prope_kernel import turn_fast

    return turn_fast


def turn_plainly(
    x: Float[Tensor, "b n h c"],
    norm: nn.RMSNorm | None,
    matrices: Float[Tensor, "b n 4 4"],
    cos: Float[Tensor, "n a"],
    sin: Float[Tensor, "n a"],
    transposed: bool = False,
    back: bool = False,
) -> Float[Tensor, "b n h c"]:
    """Normalise heads, then turn the first half of their channels, four at a time, by matrices, the rest by angles.

    Computed in float32 where `x` is of 16 bits; the result has the type of `x`.

    Args:
        transposed: by the transposed matrices.
        back: by the angles of the other sign.
    """
    heads = x.float() if x.dtype in HALF else x
    if norm is not None:
        heads = norm(heads)
    projected, *placed = heads.split([heads.shape[-1] // 2, *[heads.shape[-1] // 4] * 2], dim=-1)
    turned = [_by_matrices(projected, matrices.mT if transposed else matrices)]
    angles = heads.shape[-1] // PARTS
    sin = -sin if back else sin
    for part, c, s in zip(placed, cos.split(angles, -1), sin.split(angles, -1), strict=True):
        turned.append(_by_angles(part, c[:, None], s[:, None]))
    return torch.cat(turned, dim=-1).to(x.dtype)


def _by_matrices(x: Tensor, matrices: Tensor) -> Tensor:
    groups = x.unflatten(-1, (-1, 4))
    if x.is_cuda:
        # Written out, since a GPU's matmul may run in TF32.
        return (matrices[:, :, None, None] * groups[..., None, :]).sum(-1).flatten(-2)
    with torch.autocast(x.device.type, enabled=False):
        return (groups.flatten(2, 3) @ matrices.mT.to(x.dtype)).view_as(groups).flatten(-2)


def _by_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([cos * first + sin * second, cos * second - sin * first], dim=-1)
