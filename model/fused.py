"""GELU and layer normalisation: torch's own, or inside compiled code written out so that the compiler fuses them best.

Both forms compute the same function; the tests hold them together, gradients included.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
# What keeps the norms of queries and keys from dividing by zero.
QK_EPS = 1e-5
# The normal distribution's upper tail for a >= 0: density(a) * polynomial(1 / (1 + P a)), within 7.5e-8
# (Abramowitz & Stegun, Handbook of Mathematical Functions, 26.2.17).
P = 0.2316419
COEFFICIENTS = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530)


def gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Exact GELU, x times the normal distribution function of x.

    Compiled for 16-bit numbers its error function is a polynomial that differs by less than they can tell; the usual
    one takes the GPU longer than reading and writing.
    """
    if x.dtype not in HALF or not torch.compiler.is_compiling():
        return F.gelu(x)
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    """x Φ(x) = max(x, 0) - |x| Φ(-|x|), whose derivative is Φ(x) + x φ(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float()
        size = wide.abs()
        return (0.5 * wide + 0.5 * size - size * _tail(wide)[0]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        wide = x.float()
        tail, density = _tail(wide)
        slope = torch.where(wide > 0, 1 - tail, tail) + wide * density
        return (outer.float() * slope).to(x.dtype)


def _tail(x: Tensor) -> tuple[Tensor, Tensor]:
    """Φ(-|x|) and φ(x) of float32 numbers, of operations that GPUs have an instruction for: no division, no exp."""
    density = torch.exp2(x * x * (-0.5 / math.log(2))) * (1 / math.sqrt(2 * math.pi))
    t = torch.rsqrt(1 + P * x.abs()).square()
    polynomial = COEFFICIENTS[0] * t
    for coefficient in COEFFICIENTS[1:]:
        polynomial = (polynomial + coefficient) * t
    return density * polynomial, density


def layer_norm(x: Float[Tensor, "*n d"], weight: Float[Tensor, "d"] | None, eps: float) -> Float[Tensor, "*n d"]:
    """Layer normalisation over the last dimension, without bias and perhaps without weight.

    Written out, mean and variance are results of their own: kept for backward at next to no memory, they let one
    kernel compute both gradients.
    """
    if not torch.compiler.is_compiling():
        return F.layer_norm(x, x.shape[-1:], weight, None, eps)
    wide = x.float() if x.dtype in HALF else x
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    normalized = (wide - mean) * torch.rsqrt(variance + eps)
    normalized = normalized if weight is None else normalized * weight
    # Under autocast the result stays wide, as that of torch's own does.
    return normalized if torch.is_autocast_enabled(x.device.type) else normalized.to(x.dtype)
