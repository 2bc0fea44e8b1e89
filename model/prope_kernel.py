"""The fast form of PRoPE's `turn_plainly`: normalisation and turning in one pass over the heads, forward and backward.

A program takes some tokens with all their heads. The first half of a head's channels is loaded as groups of four, the
rest as the two halves of its columns' and of its rows' channels.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from geometry.relative import PARTS

# Tokens of a program, and its warps.
_TOKENS = 1
_WARPS = 2


@triton.jit
def _places(n, stride_b, stride_n, stride_h, H, T: tl.constexpr, HP: tl.constexpr):
    """The program's tokens: their rows among all scenes', their numbers, where their heads begin, which are there."""
    token = (tl.program_id(0).to(tl.int64) * T + tl.arange(0, T))[:, None, None, None]
    head = tl.arange(0, HP)[None, :, None, None]
    scene = tl.program_id(1).to(tl.int64)
    start = scene * stride_b + token * stride_n + head * stride_h
    return scene * n + token, token, head, start, token < n, head < H


@triton.jit
def _channels(G, GP: tl.constexpr):
    """Channels of the groups of four [G, 4], those of the first halves of columns and rows [2, G] and their angles."""
    group = tl.arange(0, GP)[None, None, :, None]
    four = 4 * group + tl.arange(0, 4)[None, None, None, :]
    place = tl.arange(0, GP)[None, None, None, :]
    pair = tl.arange(0, 2)[None, None, :, None]
    return four, group < G, 4 * G + pair * 2 * G + place, pair * G + place, place < G


@triton.jit
def _load_heads(x, start, four, rest, four_mask, rest_mask, G):
    """Heads in float32: the groups of four, the first halves of columns and rows, their second halves."""
    u = tl.load(x + start + four, four_mask, 0.0).to(tl.float32)
    a = tl.load(x + start + rest, rest_mask, 0.0).to(tl.float32)
    b = tl.load(x + start + rest + G, rest_mask, 0.0).to(tl.float32)
    return u, a, b


@triton.jit
def _load_angles(cos, sin, token, angle, mask, G, BACK: tl.constexpr):
    """Cosines and sines of the tokens' angles, of the other sign if BACK."""
    c = tl.load(cos + token * 2 * G + angle, mask, 0.0)
    s = tl.load(sin + token * 2 * G + angle, mask, 0.0)
    if BACK:
        s = -s
    return c, s


@triton.jit
def _sum_channels(four, rest):
    """Sums over the channels of every head [T, H, 1, 1]."""
    return (tl.sum(tl.sum(four, 3), 2) + tl.sum(tl.sum(rest, 3), 2))[:, :, None, None]


@triton.jit
def _row(four, matrices, row, within, ROW: tl.constexpr, TRANSPOSED: tl.constexpr):
    """One row of the tokens' matrices times groups of four [T, H, G]."""
    j = tl.arange(0, 4)[None, None, None, :]
    place = 4 * j + ROW if TRANSPOSED else 4 * ROW + j
    return tl.sum(four * tl.load(matrices + row * 16 + place, within, 0.0), axis=3)


@triton.jit
def _by_matrices(four, matrices, row, within, T: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr, TRANSPOSED):
    """The tokens' matrices times groups of four [T, H, G, 4]."""
    first = _row(four, matrices, row, within, 0, TRANSPOSED)
    second = _row(four, matrices, row, within, 1, TRANSPOSED)
    third = _row(four, matrices, row, within, 2, TRANSPOSED)
    fourth = _row(four, matrices, row, within, 3, TRANSPOSED)
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (T, HP, GP, 4))


@triton.jit
def _forward(
    x, weight, matrices, cos, sin, y, n, eps, stride_b, stride_n, stride_h,
    H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr,
    NORM: tl.constexpr, TRANSPOSED: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    row, token, head, source, within, real = _places(n, stride_b, stride_n, stride_h, H, T, HP)
    four, grouped, rest, angle, placed = _channels(G, GP)
    target = (row * H + head) * (8 * G)
    four_mask = within & real & grouped
    rest_mask = within & real & placed
    u, a, b = _load_heads(x, source, four, rest, four_mask, rest_mask, G)
    if NORM:
        scale = tl.rsqrt(_sum_channels(u * u, a * a + b * b) / (8 * G) + eps)
        u = u * scale * tl.load(weight + four, grouped, 0.0)
        a = a * scale * tl.load(weight + rest, placed, 0.0)
        b = b * scale * tl.load(weight + rest + G, placed, 0.0)
    turned = _by_matrices(u, matrices, row, within, T, HP, GP, TRANSPOSED)
    c, s = _load_angles(cos, sin, token, angle, within & placed, G, BACK)
    tl.store(y + target + four, turned, four_mask)
    tl.store(y + target + rest, c * a + s * b, rest_mask)
    tl.store(y + target + rest + G, c * b - s * a, rest_mask)


@triton.jit
def _backward(
    outer, x, weight, matrices, cos, sin, dx, dweight, n, eps, stride_b, stride_n, stride_h,
    H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr,
    TRANSPOSED: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Of normalisation and turning together; `outer` and `dx` are contiguous, `x` is as it was."""
    row, token, head, source, within, real = _places(n, stride_b, stride_n, stride_h, H, T, HP)
    four, grouped, rest, angle, placed = _channels(G, GP)
    target = (row * H + head) * (8 * G)
    four_mask = within & real & grouped
    rest_mask = within & real & placed
    u, a, b = _load_heads(x, source, four, rest, four_mask, rest_mask, G)
    outer_u, outer_a, outer_b = _load_heads(outer, target, four, rest, four_mask, rest_mask, G)
    c, s = _load_angles(cos, sin, token, angle, within & placed, G, BACK)
    # What reaches the heads before they were turned, then before they were normalised.
    du = _by_matrices(outer_u, matrices, row, within, T, HP, GP, not TRANSPOSED)
    da = c * outer_a - s * outer_b
    db = c * outer_b + s * outer_a
    scale = tl.rsqrt(_sum_channels(u * u, a * a + b * b) / (8 * G) + eps)
    sums = dweight + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * (8 * G)
    tl.store(sums + four, tl.sum(tl.sum(du * u * scale, 1, True), 0, True), grouped)
    tl.store(sums + rest, tl.sum(tl.sum(da * a * scale, 1, True), 0, True), placed)
    tl.store(sums + rest + G, tl.sum(tl.sum(db * b * scale, 1, True), 0, True), placed)
    du = du * tl.load(weight + four, grouped, 0.0)
    da = da * tl.load(weight + rest, placed, 0.0)
    db = db * tl.load(weight + rest + G, placed, 0.0)
    shrink = _sum_channels(du * u, da * a + db * b) * scale * scale / (8 * G)
    tl.store(dx + target + four, scale * (du - u * shrink), four_mask)
    tl.store(dx + target + rest, scale * (da - a * shrink), rest_mask)
    tl.store(dx + target + rest + G, scale * (db - b * shrink), rest_mask)


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
    # The first dimension of a grid may be long, the others end at 65,535.
    return triton.cdiv(x.shape[1], _TOKENS), x.shape[0]


def turn_fast(
    x: Tensor,
    norm: nn.RMSNorm | None,
    matrices: Tensor,
    cos: Tensor,
    sin: Tensor,
    transposed: bool = False,
    back: bool = False,
) -> Tensor:
    """The fast form of `turn_plainly`."""
    weight = None if norm is None else norm.weight
    eps = 0.0 if norm is None else float(norm.eps or 0.0)
    return turn_heads(x, weight, eps, matrices, cos, sin, transposed, back)


@torch.library.custom_op("lvsm::turn_heads", mutates_args=())
def turn_heads(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    matrices: Tensor,
    cos: Tensor,
    sin: Tensor,
    transposed: bool,
    back: bool,
) -> Tensor:
    """`turn_fast` as an operator that compilers and autograd know; `weight` is that of the norm, if there is one."""
    x = _dense_heads(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _forward[_grid(x)](
        x, weight if weight is not None else x, matrices, cos, sin, y, x.shape[1], eps, *x.stride()[:3],
        **_sizes(x), NORM=weight is not None, TRANSPOSED=transposed, BACK=back,
    )  # fmt: skip
    return y


@turn_heads.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("lvsm::turn_heads_backward", mutates_args=())
def turn_heads_backward(
    outer: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    matrices: Tensor,
    cos: Tensor,
    sin: Tensor,
    transposed: bool,
    back: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and of the norm's weight."""
    x = _dense_heads(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks, b = _grid(x)
    sums = torch.empty(b * blocks, x.shape[3], dtype=torch.float32, device=x.device)
    _backward[blocks, b](
        outer.contiguous(), x, weight, matrices, cos, sin, dx, sums, x.shape[1], eps, *x.stride()[:3],
        **_sizes(x), TRANSPOSED=transposed, BACK=back,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


@turn_heads_backward.register_fake
def _(_outer: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, eps, matrices, cos, sin, *way = inputs
    ctx.eps = eps
    ctx.way = way
    ctx.save_for_backward(None if weight is None else x, weight, matrices, cos, sin)


def _differentiate(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *turns = ctx.saved_tensors
    transposed, back = ctx.way
    if weight is None:
        return turn_heads(outer, None, ctx.eps, *turns, not transposed, not back), *[None] * 7
    dx, dweight = turn_heads_backward(outer, x, weight, ctx.eps, *turns, transposed, back)
    return dx, dweight, *[None] * 6


turn_heads.register_autograd(_differentiate, setup_context=_remember)
