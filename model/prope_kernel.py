"""The fast form of `model.prope.turn`: normalisation and turning in one pass over the heads, forward and backward.

A program takes some tokens with all their heads. The first half of a head's channels is loaded as groups of four, the
rest as the two halves of its columns' and of its rows' channels.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from geometry.relative import PARTS

# Tokens of a program, and its warps.
_TOKENS = 4
_WARPS = 4


@triton.jit
def _component(four, matrices, token, within, ROW: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Component ROW of matrices times groups of four [T, H, G, 4]."""
    j = tl.arange(0, 4)[None, None, None, :]
    place = 4 * j + ROW if TRANSPOSED else 4 * ROW + j
    row = tl.load(matrices + token[:, :, :, None] * 16 + place, within[:, :, :, None], 0.0)
    return tl.sum(four * row, axis=3)


@triton.jit
def _places(n, stride_b, stride_n, stride_h, H, T: tl.constexpr, HP: tl.constexpr):
    """The program's tokens, as rows of all scenes', and where their heads begin [T, H, 1]; which are there."""
    tokens = (tl.program_id(1) * T + tl.arange(0, T))[:, None, None]
    heads = tl.arange(0, HP)[None, :, None]
    scene = tl.program_id(0).to(tl.int64)
    return scene * n + tokens, tokens, scene * stride_b + tokens * stride_n + heads * stride_h, tokens < n, heads < H


@triton.jit
def _forward(
    x, weight, matrices, cos, sin, y, n, eps, stride_b, stride_n, stride_h,
    H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr,
    NORM: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    row, token, source, within, real = _places(n, stride_b, stride_n, stride_h, H, T, HP)
    target = row * (H * 8 * G) + tl.arange(0, HP)[None, :, None] * (8 * G)
    g = tl.arange(0, GP)[None, None, :]
    mask = within & real & (g < G)
    j = tl.arange(0, 4)[None, None, None, :]
    pair = tl.arange(0, 2)[None, None, :, None]
    gg = tl.arange(0, GP)[None, None, None, :]
    rest = 4 * G + pair * 2 * G + gg
    rest_mask = (within & real)[:, :, :, None] & (gg < G)
    four = tl.load(x + source[:, :, :, None] + 4 * g[:, :, :, None] + j, mask[:, :, :, None], 0.0).to(tl.float32)
    a = tl.load(x + source[:, :, :, None] + rest, rest_mask, 0.0).to(tl.float32)
    b = tl.load(x + source[:, :, :, None] + rest + G, rest_mask, 0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(tl.sum(four * four, 3), 2) + tl.sum(tl.sum(a * a + b * b, 3), 2)
        scale = tl.rsqrt(squares / (8 * G) + eps)[:, :, None, None]
        four = four * scale * tl.load(weight + 4 * g[:, :, :, None] + j, (g < G)[:, :, :, None], 0.0)
        a = a * scale * tl.load(weight + rest, gg < G, 0.0)
        b = b * scale * tl.load(weight + rest + G, gg < G, 0.0)
    for i in tl.static_range(4):
        tl.store(y + target + 4 * g + i, _component(four, matrices, row, within, i, TRANSPOSED), mask)
    angles = token[:, :, :, None] * 2 * G + pair * G + gg
    angles_mask = within[:, :, :, None] & (gg < G)
    c = tl.load(cos + angles, angles_mask, 0.0)
    s = tl.load(sin + angles, angles_mask, 0.0)
    tl.store(y + target[:, :, :, None] + rest, c * a + s * b, rest_mask)
    tl.store(y + target[:, :, :, None] + rest + G, c * b - s * a, rest_mask)


@triton.jit
def _backward(
    outer, x, weight, matrices, cos, sin, dx, dweight, n, eps, stride_b, stride_n, stride_h,
    H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Of normalisation and turning together; `outer` and `dx` are contiguous, `x` is as it was."""
    row, token, source, within, real = _places(n, stride_b, stride_n, stride_h, H, T, HP)
    target = row * (H * 8 * G) + tl.arange(0, HP)[None, :, None] * (8 * G)
    g = tl.arange(0, GP)[None, None, :]
    mask = within & real & (g < G)
    j = tl.arange(0, 4)[None, None, None, :]
    pair = tl.arange(0, 2)[None, None, :, None]
    gg = tl.arange(0, GP)[None, None, None, :]
    rest = 4 * G + pair * 2 * G + gg
    rest_mask = (within & real)[:, :, :, None] & (gg < G)
    a = tl.load(x + source[:, :, :, None] + rest, rest_mask, 0.0).to(tl.float32)
    b = tl.load(x + source[:, :, :, None] + rest + G, rest_mask, 0.0).to(tl.float32)
    outer_four = tl.load(outer + target[:, :, :, None] + 4 * g[:, :, :, None] + j, mask[:, :, :, None], 0.0)
    outer_four = outer_four.to(tl.float32)
    outer_a = tl.load(outer + target[:, :, :, None] + rest, rest_mask, 0.0).to(tl.float32)
    outer_b = tl.load(outer + target[:, :, :, None] + rest + G, rest_mask, 0.0).to(tl.float32)
    angles = token[:, :, :, None] * 2 * G + pair * G + gg
    angles_mask = within[:, :, :, None] & (gg < G)
    c = tl.load(cos + angles, angles_mask, 0.0)
    s = tl.load(sin + angles, angles_mask, 0.0)
    # What reaches the normalised heads, times what was normalised.
    da = c * outer_a - s * outer_b
    db = c * outer_b + s * outer_a
    squares = tl.sum(tl.sum(a * a + b * b, 3), 2)
    weight_a = tl.load(weight + rest, gg < G, 0.0)
    weight_b = tl.load(weight + rest + G, gg < G, 0.0)
    along = tl.sum(tl.sum(da * weight_a * a + db * weight_b * b, 3), 2)
    for i in tl.static_range(4):
        part = tl.load(x + source + 4 * g + i, mask, 0.0).to(tl.float32)
        d = _component(outer_four, matrices, row, within, i, not TRANSPOSED)
        squares += tl.sum(part * part, 2)
        along += tl.sum(d * tl.load(weight + 4 * g + i, g < G, 0.0) * part, 2)
    scale = tl.rsqrt(squares / (8 * G) + eps)[:, :, None]
    shrink = along[:, :, None] * scale * scale / (8 * G)
    sums = dweight + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (8 * G)
    flat = tl.arange(0, GP)
    for i in tl.static_range(4):
        part = tl.load(x + source + 4 * g + i, mask, 0.0).to(tl.float32)
        d = _component(outer_four, matrices, row, within, i, not TRANSPOSED)
        inner = d * tl.load(weight + 4 * g + i, g < G, 0.0)
        tl.store(dx + target + 4 * g + i, scale * (inner - part * shrink), mask)
        tl.store(sums + 4 * flat + i, tl.sum(tl.sum(d * part * scale, 0), 0), flat < G)
    wide = scale[:, :, :, None]
    deep = shrink[:, :, :, None]
    tl.store(dx + target[:, :, :, None] + rest, wide * (da * weight_a - a * deep), rest_mask)
    tl.store(dx + target[:, :, :, None] + rest + G, wide * (db * weight_b - b * deep), rest_mask)
    pairs = 4 * G + tl.arange(0, 2)[:, None] * 2 * G + flat[None, :]
    tl.store(sums + pairs, tl.sum(tl.sum(da * a * wide, 0), 0), (flat < G)[None, :])
    tl.store(sums + pairs + G, tl.sum(tl.sum(db * b * wide, 0), 0), (flat < G)[None, :])


def _sizes(x: Tensor) -> dict[str, int]:
    h, c = x.shape[2:]
    groups = c // PARTS
    return {
        "H": h,
        "G": groups,
        "T": _TOKENS,
        "HP": triton.next_power_of_2(h),
        "GP": triton.next_power_of_2(groups),
        "num_warps": _WARPS,
    }


def _dense_heads(x: Tensor) -> Tensor:
    """The same numbers, the channels of a head side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[0], triton.cdiv(x.shape[1], _TOKENS)


@torch.library.custom_op("lvsm::turn_heads", mutates_args=())
def turn_heads(
    x: Tensor, weight: Tensor | None, eps: float, matrices: Tensor, cos: Tensor, sin: Tensor, transposed: bool
) -> Tensor:
    """`model.prope.turn` with the weight of the norm, or none."""
    x = _dense_heads(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _forward[_grid(x)](
        x, weight if weight is not None else x, matrices, cos, sin, y, x.shape[1], eps, *x.stride()[:3],
        **_sizes(x), NORM=weight is not None, TRANSPOSED=transposed,
    )  # fmt: skip
    return y


@turn_heads.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("lvsm::turn_heads_backward", mutates_args=())
def _turn_back(
    outer: Tensor, x: Tensor, weight: Tensor, eps: float, matrices: Tensor, cos: Tensor, sin: Tensor, transposed: bool
) -> tuple[Tensor, Tensor]:
    x = _dense_heads(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    b, blocks = _grid(x)
    sums = torch.empty(b * blocks, x.shape[3], dtype=torch.float32, device=x.device)
    _backward[b, blocks](
        outer.contiguous(), x, weight, matrices, cos, sin, dx, sums, x.shape[1], eps, *x.stride()[:3],
        **_sizes(x), TRANSPOSED=transposed,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


@_turn_back.register_fake
def _(_outer: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, eps, matrices, cos, sin, transposed = inputs
    ctx.eps = eps
    ctx.transposed = transposed
    ctx.save_for_backward(None if weight is None else x, weight, matrices, cos, sin)


def _differentiate(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, matrices, cos, sin = ctx.saved_tensors
    if weight is None:
        # The other way round: transposed matrices and angles of the other sign.
        dx = turn_heads(outer, None, ctx.eps, matrices, cos, -sin, not ctx.transposed)
        return dx, None, None, None, None, None, None
    dx, dweight = _turn_back(outer, x, weight, ctx.eps, matrices, cos, sin, ctx.transposed)
    return dx, dweight, None, None, None, None, None


turn_heads.register_autograd(_differentiate, setup_context=_remember)
