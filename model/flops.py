"""Arithmetic of training and rendering, for the share of a card's peak that they use (model FLOP utilisation)."""

from dataclasses import dataclass

import torch

# Dense bf16 rates in FLOP/s from the vendors' data sheets, by a part of the device's name; more specific ones first.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A40": 150e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a known GPU in FLOP/s; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


@dataclass(frozen=True)
class Flops:
    """FLOP of a forward pass: those of matmuls of tokens with weights, and those of attention's two matmuls."""

    matmuls: float = 0.0
    attention: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.matmuls + other.matmuls, self.attention + other.attention)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.matmuls * times, self.attention * times)

    @property
    def forward(self) -> float:
        """FLOP of the forward pass."""
        return self.matmuls + self.attention

    @property
    def training(self) -> float:
        """FLOP of forward and backward: nothing recomputed, nothing saved.

        Backward costs twice the forward for matmuls, 2.5 times for attention, which recomputes its scores.
        """
        return 3.0 * self.matmuls + 3.5 * self.attention


def linear_flops(d_in: int, d_out: int, tokens: int) -> Flops:
    """A linear layer of so many channels."""
    return Flops(2.0 * d_in * d_out * tokens)


def stack_flops(d: int, n_layer: int, tokens: int, context: int = 0) -> Flops:
    """A stack of blocks over `tokens`, which attend to one another and to `context` further keys.

    A block has 12 d² weights: 4 d² in attention, 8 d² in the MLP.
    """
    matmuls = linear_flops(d, 12 * d, tokens)
    attention = Flops(attention=4.0 * tokens * (tokens + context) * d)
    return (matmuls + attention) * n_layer
