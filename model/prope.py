"""PRoPE applied to heads (Li et al., NeurIPS 2025): the plain form, and one fast kernel on GPUs."""

import importlib.util
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.relative import PARTS, TokenCameras

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Prope:
    """Queries are turned by Pᵀ, keys and values by P⁻¹, results by P; the rotations of places are undone on results.

    The norms of queries and keys come first, in the same pass.
    """

    cameras: TokenCameras

    def queries(self, q: Tensor, norm: nn.RMSNorm | None, tokens: slice | None) -> Tensor:
        """Turn queries of `tokens`, or of all."""
        own = self._of(tokens)
        return turn(q, norm, own.projection, own.cos, own.sin, transposed=True)

    def keys(self, k: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Turn keys of all tokens."""
        return turn(k, norm, self.cameras.inverse, self.cameras.cos, self.cameras.sin)

    def values(self, v: Tensor) -> Tensor:
        """Turn values of all tokens."""
        return turn(v, None, self.cameras.inverse, self.cameras.cos, self.cameras.sin)

    def results(self, attended: Tensor, tokens: slice | None) -> Tensor:
        """Turn what attention gives to `tokens`, or to all."""
        own = self._of(tokens)
        return turn(attended, None, own.projection, own.cos, -own.sin)

    def _of(self, tokens: slice | None) -> TokenCameras:
        return self.cameras if tokens is None else self.cameras[tokens]


def turn(
    x: Float[Tensor, "b n h c"],
    norm: nn.RMSNorm | None,
    matrices: Float[Tensor, "b n 4 4"],
    cos: Float[Tensor, "n a"],
    sin: Float[Tensor, "n a"],
    transposed: bool = False,
) -> Float[Tensor, "b n h c"]:
    """Normalise heads, then turn the first half of their channels, four at a time, by matrices, the rest by angles.

    Computed in float32; the result has the type of `x`.

    Args:
        transposed: the transposed matrices are meant.
    """
    if x.is_cuda and fast_turn_works():
        from model.prope_kernel import turn_heads

        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        return turn_heads(x, weight, eps, matrices, cos, sin, transposed)
    return turn_plainly(x, norm, matrices, cos, sin, transposed)


def fast_turn_works() -> bool:
    """Whether Triton is here, which the fast form is written in."""
    return importlib.util.find_spec("triton") is not None


def turn_plainly(
    x: Float[Tensor, "b n h c"],
    norm: nn.RMSNorm | None,
    matrices: Float[Tensor, "b n 4 4"],
    cos: Float[Tensor, "n a"],
    sin: Float[Tensor, "n a"],
    transposed: bool = False,
) -> Float[Tensor, "b n h c"]:
    """The plain form of `turn`."""
    heads = x.float() if x.dtype in _HALF else x
    if norm is not None:
        heads = norm(heads)
    projected, *placed = heads.split([heads.shape[-1] // 2, *[heads.shape[-1] // 4] * 2], dim=-1)
    turned = [_by_matrices(projected, matrices.mT if transposed else matrices)]
    angles = heads.shape[-1] // PARTS
    for part, c, s in zip(placed, cos.split(angles, -1), sin.split(angles, -1), strict=True):
        turned.append(_by_angles(part, c[:, None], s[:, None]))
    return torch.cat(turned, dim=-1).to(x.dtype)


def _by_matrices(x: Tensor, matrices: Tensor) -> Tensor:
    groups = x.unflatten(-1, (-1, 4))
    # Written out, since a matmul would run in reduced precision under autocast or TF32.
    return (matrices[:, :, None, None] * groups[..., None, :]).sum(-1).flatten(-2)


def _by_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([cos * first + sin * second, cos * second - sin * first], dim=-1)
