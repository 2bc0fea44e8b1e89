"""What tests plug into attention: further keys and values, and cameras that turn heads."""

import torch
from torch import Tensor, nn

from model.transformer import KeysValues, normalize

HEADS, CHANNELS = 2, 32


class TurnedByCameras:
    """A `Relative` by made-up cameras: a matrix of each of `n` tokens, and its inverse."""

    def __init__(self, b: int, n: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(b, n, 1, CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)
        matrix = torch.eye(CHANNELS) + 0.05 * noise
        self.matrix = matrix.to(dtype)
        self.inverse = matrix.inverse().to(dtype)

    def queries(self, q: Tensor, norm: nn.RMSNorm | None, tokens: slice | None) -> Tensor:
        return _turn(_some(self.matrix.mT, tokens), normalize(q, norm))

    def keys(self, k: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return _turn(self.inverse, normalize(k, norm))

    def values(self, v: Tensor) -> Tensor:
        return _turn(self.inverse, v)

    def results(self, attended: Tensor, tokens: slice | None) -> Tensor:
        return _turn(_some(self.matrix, tokens), attended)


def _some(matrices: Tensor, tokens: slice | None) -> Tensor:
    return matrices if tokens is None else matrices[:, tokens]


def _turn(matrices: Tensor, heads: Tensor) -> Tensor:
    return (matrices @ heads[..., None])[..., 0]


def random_context(b: int, layers: int, tokens: int = 5, dtype: torch.dtype = torch.float32) -> list[KeysValues]:
    """Keys and values of so many tokens for every layer; they want gradients."""
    generator = torch.Generator().manual_seed(6)
    shape = (2, layers, b, HEADS, tokens, CHANNELS)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return [KeysValues(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in zip(*numbers, strict=True)]
