"""Queries and keys normalised and attended to in one operator, whose backward writes all three gradients in one place.

They come side by side from one matmul. Computed apart, the gradients of norms, of values and their joining read and
write three times as much. Sequences and those that have them as context run side by side, too. Used in training, where
kernels of `attention_kernel` attend.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention_kernel import (
    OwnKernel,
    attend_own_and_context,
    attention_gradients,
    context_gradients,
    empty_heads,
    own_attention,
)
from model.fused import QK_EPS
from model.optional_kernels import written_in_triton


def attend_normed(
    kernel: OwnKernel,
    heads: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    counts: Sequence[int],
    save_normed: bool = False,
) -> Tensor:
    """Attention of heads [... 3h c] whose queries and keys are normalised first, [... h c].

    Args:
        q_weight, k_weight: of their RMS norms [c].
        counts: s, m, b, n: s sequences of m tokens, which attend to themselves, then b of n tokens, or 0 and 0: as many
            in a row for each of the former, which they attend to as well.
        save_normed: save what the norms give for backward, which else computes it again.
    """
    flat = heads.flatten(0, -3).unflatten(1, (3, -1))
    out = normed_attention(flat, q_weight, k_weight, kernel, *counts, save_normed)[0]
    return out.unflatten(0, heads.shape[:-2])


def normalize_plainly(heads: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [n h c] of heads [n 3 h c] after their RMS norms, computed in float32."""
    c = heads.shape[-1]
    pairs = zip(heads[:, :2].float().unbind(1), (q_weight, k_weight), strict=True)
    q, k = (F.rms_norm(x, (c,), weight.float(), QK_EPS).to(heads.dtype) for x, weight in pairs)
    return q, k


def normalize_backward_plainly(
    dq: Tensor, dk: Tensor, more: Sequence[Tensor] | None, heads: Tensor, q_weight: Tensor, k_weight: Tensor,
    dheads: Tensor,
) -> Tensor:  # fmt: skip
    """Write gradients of queries and keys to `dheads` [n 3 h c]; returns those of both weights [2 c] in float32.

    Args:
        dq, dk: the gradients of what `normalize_plainly` gives [n h c].
        more: what is added to those of the last queries [n-m h c], and of the first keys [m h c].
    """
    dq = dq.float()
    dk = dk.float()
    if more is not None:
        more_q, more_k = more
        m = len(more_k)
        dq = torch.cat([dq[:m], dq[m:] + more_q])
        dk = torch.cat([dk[:m] + more_k, dk[m:]])
    sums = []
    for index, (dy, weight) in enumerate(((dq, q_weight), (dk, k_weight))):
        x = heads[:, index].float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + QK_EPS)
        unit = x * scale
        weighted = dy * weight.float()
        along = (weighted * unit).mean(-1, keepdim=True)
        dheads[:, index] = (scale * (weighted - unit * along)).to(dheads.dtype)
        sums.append((dy * unit).flatten(0, 1).sum(0))
    return torch.stack(sums)


def _form(plainly: Callable[..., Any], fast: str, x: Tensor) -> Callable[..., Any]:
    """The form that runs fastest where `x` is."""
    return (written_in_triton("model.head_norm_kernel", fast) if x.is_cuda else None) or plainly


def _normalize(heads: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
    return _form(normalize_plainly, "normalize_fast", heads)(heads, q_weight, k_weight)


class _Heads(NamedTuple):
    """Heads of attention [n h c], or of its sequences [b n h c], and the places of their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    outer: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


def _first(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The first sequences [s m ...] of all tokens [n ...]."""
    s, m, _, _ = counts
    return x[: s * m].unflatten(0, (s, m))


def _second(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The second sequences [b n ...] of all tokens."""
    s, m, b, n = counts
    return x[s * m :].unflatten(0, (b, n))


@torch.library.custom_op("lvsm::normed_attention", mutates_args=())
def normed_attention(
    heads: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    kernel: str,
    s: int,
    m: int,
    b: int,
    n: int,
    save_normed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention of heads [sm+bn 3 h c]: queries and keys before their RMS norms, and values.

    Args:
        s, m, b, n: the counts of `attend_normed`.

    Returns:
        What every token gets [sm+bn h c]; the log-sum-exps of the scores of the first sequences [s h m] and of the
        second ones [b h n]; queries and keys after their norms [sm+bn h c], if they are to be saved.
    """
    counts = (s, m, b, n)
    q, k = _normalize(heads, q_weight, k_weight)
    normed = (q, k) if save_normed else (q.new_empty(0), q.new_empty(0))
    v = heads[:, 2]
    out = empty_heads(q)
    known_k = _first(k, counts)
    known_v = _first(v, counts)
    _, lse = own_attention(kernel, _first(q, counts), known_k, known_v, _first(out, counts))
    if not b:
        return out, lse, lse.new_empty(0), *normed
    q, k, v, place = (_second(x, counts) for x in (q, k, v, out))
    _, second_lse = attend_own_and_context(kernel, q, k, v, known_k, known_v, place)
    return out, lse, second_lse, *normed


@normed_attention.register_fake
def _(
    heads: Tensor,
    _q_weight: Tensor,
    _k_weight: Tensor,
    _kernel: str,
    s: int,
    m: int,
    b: int,
    n: int,
    save_normed: bool,
) -> Any:
    tokens, _, h, c = heads.shape
    lse = heads.new_empty(s, h, m, dtype=torch.float32)
    out = heads.new_empty(tokens, h, c)
    normed = (torch.empty_like(out) if save_normed else heads.new_empty(0) for _ in range(2))
    return out, lse, lse.new_empty((b, h, n) if b else (0,)), *normed


@torch.library.custom_op("lvsm::normed_attention_backward", mutates_args=())
def normed_attention_backward(
    outer: Tensor,
    heads: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    out: Tensor,
    lse: Tensor,
    second_lse: Tensor,
    q: Tensor,
    k: Tensor,
    kernel: str,
    s: int,
    m: int,
    b: int,
    n: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of heads, and of both norms' weights together [2 c]; `out` and behind: what the operator gave."""
    counts = (s, m, b, n)
    if not len(q):
        q, k = _normalize(heads, q_weight, k_weight)
    dheads = empty_heads(heads)
    whole = _Heads(q, k, heads[:, 2], out, outer, empty_heads(q), empty_heads(k), dheads[:, 2])
    first = _Heads(*(_first(x, counts) for x in whole))
    _attention_backward(kernel, first, lse)
    more = None
    if b:
        second = _Heads(*(_second(x, counts) for x in whole))
        _attention_backward(kernel, second, second_lse)
        more_q, more_k, more_v = context_gradients(
            kernel, second.outer, second.q, first.k, first.v, second.out, second_lse
        )
        first.dv.add_(more_v)
        more = (more_q.flatten(0, 1), more_k.flatten(0, 1))
    backward = _form(normalize_backward_plainly, "normalize_backward_fast", heads)
    return dheads, backward(whole.dq, whole.dk, more, heads, q_weight, k_weight, dheads)


def _attention_backward(kernel: str, x: _Heads, lse: Tensor) -> None:
    attention_gradients(kernel, (x.outer, x.q, x.k, x.v, x.out, lse), (x.dq, x.dk, x.dv))


@normed_attention_backward.register_fake
def _(_outer: Tensor, heads: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_heads(heads), heads.new_empty(2, heads.shape[-1], dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    heads, q_weight, k_weight, *ctx.rest, _save_normed = inputs
    ctx.save_for_backward(heads, q_weight, k_weight, *output)
    # Results that are only saved have no gradients, and need no zeros for them.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, outer: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    # Asked for once: plain checkpoints give them no second time.
    saved = ctx.saved_tensors
    _, q_weight, k_weight, *_ = saved
    dheads, dweights = normed_attention_backward(outer, *saved, *ctx.rest)
    return dheads, dweights[0].to(q_weight.dtype), dweights[1].to(k_weight.dtype), *[None] * (len(ctx.rest) + 1)


normed_attention.register_autograd(_differentiate, setup_context=_remember)

# The operator as programs of operators hold it.
NORMED = torch.ops.lvsm.normed_attention.default
