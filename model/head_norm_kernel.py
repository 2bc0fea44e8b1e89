"""The fast forms of `normalize_plainly` and its backward: one pass each over queries and keys.

A program takes some heads of queries, or of keys, with all their channels.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.fused import QK_EPS

# Heads of a program at once, and how often in a row.
_HEADS = 32
_TIMES = 8


@triton.jit
def _places(first, rows, H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr):
    """Of heads from `first` on: where they lie in a tensor [rows c], and in one [tokens 3 h c]; which are there.

    Those that are there are of queries or of keys, as the program is.
    """
    of_keys = tl.program_id(1)
    row = first + tl.arange(0, R)[:, None]
    channel = tl.arange(0, CP)[None, :]
    apart = row.to(tl.int64) * C + channel
    together = ((row // H).to(tl.int64) * 3 + of_keys) * (H * C) + (row % H) * C + channel
    real = (row < rows) & (channel < C)
    return apart, together, real, real & (of_keys == 0), real & (of_keys == 1)


@triton.jit
def _load(q, k, place, of_queries, of_keys):
    """Numbers of queries or of keys, in float32; the others are 0."""
    return tl.load(q + place, of_queries, 0.0).to(tl.float32) + tl.load(k + place, of_keys, 0.0).to(tl.float32)


@triton.jit
def _load_weight(q_weight, k_weight, C: tl.constexpr, CP: tl.constexpr):
    channel = tl.arange(0, CP)[None, :]
    of_keys = tl.program_id(1)
    return _load(q_weight, k_weight, channel, (channel < C) & (of_keys == 0), (channel < C) & (of_keys == 1))


@triton.jit
def _normalize(
    heads, q_weight, k_weight, q, k, rows, eps,
    H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    apart, together, real, of_queries, of_keys = _places(tl.program_id(0) * R, rows, H, C, CP, R)
    x = tl.load(heads + together, real, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1)[:, None] / C + eps)
    y = x * scale * _load_weight(q_weight, k_weight, C, CP)
    tl.store(q + apart, y, of_queries)
    tl.store(k + apart, y, of_keys)


@triton.jit
def _normalize_backward(
    dq, dk, more_q, more_k, heads, q_weight, k_weight, dheads, sums, rows, split, eps,
    H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr, TIMES: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Queries from head `split` on have more of a gradient, and keys up to it."""
    weight = _load_weight(q_weight, k_weight, C, CP)
    total = tl.zeros((1, CP), tl.float32)
    for time in range(TIMES):
        first = (tl.program_id(0) * TIMES + time) * R
        apart, together, real, of_queries, of_keys = _places(first, rows, H, C, CP, R)
        x = tl.load(heads + together, real, 0.0).to(tl.float32)
        dy = _load(dq, dk, apart, of_queries, of_keys)
        if MORE:
            begin = tl.cast(split, tl.int64) * C
            dy += tl.load(more_q + apart - begin, of_queries & (apart >= begin), 0.0).to(tl.float32)
            dy += tl.load(more_k + apart, of_keys & (apart < begin), 0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 1)[:, None] / C + eps)
        unit = x * scale
        total += tl.sum(dy * unit, 0)[None, :]
        weighted = dy * weight
        along = tl.sum(weighted * unit, 1)[:, None] / C
        tl.store(dheads + together, scale * (weighted - unit * along), real)
    channel = tl.arange(0, CP)[None, :]
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program * C + channel, total, channel < C)


def normalize_fast(heads: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The fast form of `normalize_plainly`."""
    heads = heads.contiguous()
    n, _, h, c = heads.shape
    q = heads.new_empty(n, h, c)
    k = torch.empty_like(q)
    _normalize[triton.cdiv(n * h, _HEADS), 2](heads, q_weight, k_weight, q, k, n * h, QK_EPS, **_sizes(h, c))
    return q, k


def normalize_backward_fast(
    dq: Tensor, dk: Tensor, more: Sequence[Tensor] | None, heads: Tensor, q_weight: Tensor, k_weight: Tensor,
    dheads: Tensor,
) -> Tensor:  # fmt: skip
    """The fast form of `normalize_backward_plainly`; `dq`, `dk` and `dheads` are contiguous."""
    heads = heads.contiguous()
    n, _, h, c = heads.shape
    programs = triton.cdiv(n * h, _HEADS * _TIMES)
    sums = heads.new_empty(2, programs, c, dtype=torch.float32)
    more_q, more_k = (dq, dk) if more is None else (x.contiguous() for x in more)
    split = 0 if more is None else len(more_k) * h
    _normalize_backward[programs, 2](
        dq, dk, more_q, more_k, heads, q_weight, k_weight, dheads, sums, n * h, split, QK_EPS, **_sizes(h, c),
        TIMES=_TIMES, MORE=more is not None,
    )  # fmt: skip
    return sums.sum(1)


def _sizes(h: int, c: int) -> dict[str, int]:
    return {"H": h, "C": c, "CP": triton.next_power_of_2(c), "R": _HEADS}
