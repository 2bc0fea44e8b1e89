"""PRoPE applied to heads (Li et al., NeurIPS 2025): plainly, and for CPUs; GPUs have a form in `model.prope_kernel`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from geometry.relative import PARTS, TokenCameras
from model.fused import HALF
from model.optional_kernels import written_in_triton


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


@dataclass(frozen=True)
class PropeByMatmul:
    """`Prope` for CPUs, where calls of operators cost more than a matmul: every turn is x C + (x B) S.

    B takes the first half of a head's channels through a matrix, and exchanges the channels that an angle pairs in the
    second half; C and S are 0 and 1 in the first half, cosines and sines in the second.

    Attributes:
        mix_queries, mix_keys, mix_results: B of every stretch of tokens that share a camera.
        cos, sin, sin_back: C, S, and S of the angles of the other sign.
    """

    cameras: TokenCameras
    mix_queries: Float[Tensor, "b s c c"]
    mix_keys: Float[Tensor, "b s c c"]
    mix_results: Float[Tensor, "b s c c"]
    cos: Float[Tensor, "n 1 c"]
    sin: Float[Tensor, "n 1 c"]
    sin_back: Float[Tensor, "n 1 c"]

    def queries(self, q: Tensor, norm: nn.RMSNorm | None, tokens: slice | None) -> Tensor:
        """Normalise and turn queries of `tokens`, or of all."""
        own = self._of(tokens)
        return own._turn(q, norm, own.mix_queries, own.sin)

    def keys(self, k: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Normalise and turn keys of all tokens."""
        return self._turn(k, norm, self.mix_keys, self.sin)

    def values(self, v: Tensor) -> Tensor:
        """Turn values of all tokens."""
        return self._turn(v, None, self.mix_keys, self.sin)

    def results(self, attended: Tensor, tokens: slice | None) -> Tensor:
        """Turn what attention gives to `tokens`, or to all."""
        own = self._of(tokens)
        return own._turn(attended, None, own.mix_results, own.sin_back)

    def _of(self, tokens: slice | None) -> "PropeByMatmul":
        return self if tokens is None else prope_by_matmul(self.cameras[tokens])

    def _turn(self, x: Tensor, norm: nn.RMSNorm | None, mix: Tensor, sin: Tensor) -> Float[Tensor, "b n h c"]:
        heads = x.float() if x.dtype in HALF else x
        if norm is not None:
            heads = norm(heads)
        stretches = heads.unflatten(1, (mix.shape[1], -1)).flatten(2, 3)
        with torch.autocast(x.device.type, enabled=False):
            mixed = (stretches @ mix.to(heads.dtype)).view(heads.shape)
        return torch.addcmul(heads * self.cos, mixed, sin).to(x.dtype)


def prope_by_matmul(cameras: TokenCameras) -> PropeByMatmul:
    """PRoPE with all that layers share computed."""
    stretches = cameras[:: cameras.stretch]
    angles = cameras.sin.shape[-1] // 2
    sin = _pairs(cameras.sin, -cameras.sin)
    return PropeByMatmul(
        cameras,
        _mixing(stretches.projection.mT, angles),
        _mixing(stretches.inverse, angles),
        _mixing(stretches.projection, angles),
        F.pad(_pairs(cameras.cos, cameras.cos), (sin.shape[-1], 0)),
        F.pad(sin, (sin.shape[-1], 0), value=1.0),
        F.pad(-sin, (sin.shape[-1], 0), value=1.0),
    )


def _pairs(first: Float[Tensor, "n a"], second: Float[Tensor, "n a"]) -> Float[Tensor, "n 1 r"]:
    """Numbers of columns, then of rows, each for the first channels of its pairs before the second ones."""
    columns_and_rows = torch.stack([first, second], dim=1).unflatten(-1, (2, -1)).transpose(1, 2)
    return columns_and_rows.flatten(1)[:, None]


def _mixing(matrices: Float[Tensor, "b s 4 4"], angles: int) -> Float[Tensor, "b s c c"]:
    """B of every stretch, which channels are multiplied by from the right."""
    unit = torch.eye(angles, device=matrices.device)
    pair = torch.kron(torch.tensor([[0.0, 1.0], [1.0, 0.0]], device=matrices.device), unit)
    exchange = torch.block_diag(pair, pair)
    projection = torch.einsum("ij,bsyx->bsixjy", unit, matrices).flatten(4, 5).flatten(2, 3)
    size = len(exchange)
    mixing = F.pad(projection, (0, size, 0, size))
    mixing[..., size:, size:] = exchange
    return mixing


def prope(cameras: TokenCameras) -> Prope | PropeByMatmul:
    """PRoPE in the form that runs fastest where the cameras are."""
    # A GPU's matmul may run in TF32.
    return Prope(cameras, _turn_on_gpus()) if cameras.projection.is_cuda else prope_by_matmul(cameras)


def _turn_on_gpus() -> Callable[..., Tensor]:
    return written_in_triton("model.prope_kernel", "turn_fast") or turn_plainly


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
    # Written out, since a GPU's matmul may run in TF32.
    return (matrices[:, :, None, None] * groups[..., None, :]).sum(-1).flatten(-2)


def _by_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([cos * first + sin * second, cos * second - sin * first], dim=-1)
