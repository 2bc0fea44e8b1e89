"""Queries and keys normalised and attended to in one operator, whose backward writes all three gradients in one place.

They come side by side from one matmul. Computed apart, the gradients of norms, of values and their joining read and
write three times as much. Used where kernels of `attention_kernel` attend, in training.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention_kernel import (
    OwnKernel,
    apart_by,
    attend_own_and_context,
    attention_gradients,
    context_gradients,
    empty_heads,
    own_attention,
    takes_fa4,
)


def normed_by(kernel: str, heads: Tensor, context: Sequence[Tensor] | None) -> OwnKernel | None:
    """What attends inside the operator; None: nothing does.

    Args:
        heads: queries, keys and values [b n 3h c].
        context: keys and values [s h m c] to attend to as well.
    """
    if not torch.is_grad_enabled():
        return None
    q = heads.chunk(3, dim=2)[0].transpose(1, 2)
    if context is None:
        return "fa4" if takes_fa4(kernel, q, q.shape[2]) else None
    return apart_by(kernel, q, q, context[0])


def attend_normed(
    kernel: OwnKernel,
    heads: Tensor,
    q_norm: nn.RMSNorm,
    k_norm: nn.RMSNorm,
    context: Sequence[Tensor] | None,
    shared: bool,
) -> list[Tensor]:
    """Attention of heads [b n 3h c] whose queries and keys are normalised first, [b n h c].

    With `shared`, the normalised keys and the values [b h n c] come behind it.
    """
    context_k, context_v = (None, None) if context is None else (x.transpose(1, 2) for x in context)
    # As RMSNorm was made: with a number.
    eps = float(q_norm.eps or 0.0)
    heads = heads.unflatten(2, (3, -1))
    out, _lse, k, v = normed_attention(heads, q_norm.weight, k_norm.weight, context_k, context_v, eps, kernel, shared)
    return [out, k.transpose(1, 2), v.transpose(1, 2)] if shared else [out]


def normalize_plainly(heads: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Queries and keys [b n h c] of heads [b n 3 h c] after their RMS norms, computed in float32."""
    c = heads.shape[-1]
    pairs = zip(heads[:, :, :2].float().unbind(2), (q_weight, k_weight), strict=True)
    q, k = (F.rms_norm(x, (c,), weight.float(), eps).to(heads.dtype) for x, weight in pairs)
    return q, k


def normalize_backward_plainly(
    dq: Tensor, dk: Tensor, more_q: Tensor | None, more_k: Tensor | None, heads: Tensor, q_weight: Tensor,
    k_weight: Tensor, eps: float, dheads: Tensor,
) -> Tensor:  # fmt: skip
    """Write gradients of queries and keys to `dheads` [b n 3 h c]; returns those of both weights [2 c] in float32.

    Args:
        dq, dk: the gradients of what `normalize_plainly` gives; `more_q` and `more_k` are added to them.
    """
    sums = []
    for index, (dy, more, weight) in enumerate(((dq, more_q, q_weight), (dk, more_k, k_weight))):
        x = heads[:, :, index].float()
        dy = dy.float() if more is None else dy.float() + more.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        unit = x * scale
        weighted = dy * weight.float()
        along = (weighted * unit).mean(-1, keepdim=True)
        dheads[:, :, index] = (scale * (weighted - unit * along)).to(dheads.dtype)
        sums.append((dy * unit).flatten(0, 2).sum(0))
    return torch.stack(sums)


@functools.cache
def _fast_forms() -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """The kernels of both, where Triton is that they are written in."""
    if importlib.util.find_spec("triton") is None:
        return normalize_plainly, normalize_backward_plainly
    from model import head_norm_kernel

    return head_norm_kernel.normalize_fast, head_norm_kernel.normalize_backward_fast


def _forms(x: Tensor) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """Normalisation and its backward in the form that runs fastest where `x` is."""
    return _fast_forms() if x.is_cuda else (normalize_plainly, normalize_backward_plainly)


@torch.library.custom_op("lvsm::normed_attention", mutates_args=())
def normed_attention(
    heads: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    context_k: Tensor | None,
    context_v: Tensor | None,
    eps: float,
    kernel: str,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of heads [b n 3 h c]: queries and keys before their RMS norms, and values.

    Args:
        context_k, context_v: keys and values [s m h c] to attend to as well, as those of `attention_apart`.
        shared: also return the keys and values, else there are none in what is returned.

    Returns:
        What every token gets [b n h c], the log-sum-exp of its scores [b h n], normalised keys and values [b n h c].
    """
    q, k = _forms(heads)[0](heads, q_weight, k_weight, eps)
    v = heads[:, :, 2]
    if context_k is None:
        out, lse = own_attention(kernel, q, k, v)
    else:
        out, lse = attend_own_and_context(kernel, q, k, v, context_k, context_v)
    return (out, lse, k, v.contiguous()) if shared else (out, lse, k.new_empty(0), v.new_empty(0))


@normed_attention.register_fake
def _(heads: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, n, _, h, c = heads.shape
    sizes = [(b, n, h, c), (b, n, h, c)] if rest[-1] else [(0,), (0,)]
    lse = heads.new_empty(b, h, n, dtype=torch.float32)
    return heads.new_empty(b, n, h, c), lse, heads.new_empty(sizes[0]), heads.new_empty(sizes[1])


@torch.library.custom_op("lvsm::normed_attention_backward", mutates_args=())
def normed_attention_backward(
    outer: Tensor,
    outer_k: Tensor | None,
    outer_v: Tensor | None,
    heads: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    context_k: Tensor | None,
    context_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    eps: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of heads, of both norms' weights together [2 c], and of the context's keys and values.

    Args:
        outer, outer_k, outer_v: those of what `normed_attention` returned, the last two where they were shared.
    """
    norms = (q_weight, k_weight, eps)
    normalize, normalize_backward = _forms(heads)
    q, k = normalize(heads, *norms)
    dheads = heads.new_empty(heads.shape)
    dv = dheads[:, :, 2]
    places = (empty_heads(q), empty_heads(k), dv)
    dq, dk, _ = attention_gradients(kernel, (outer, q, k, heads[:, :, 2], out, lse), places)
    more_q, dcontext = None, (heads.new_empty(0), heads.new_empty(0))
    if context_k is not None:
        more_q, *dcontext = context_gradients(kernel, outer, q, context_k, context_v, out, lse)
    if outer_v is not None:
        dv += outer_v
    dweights = normalize_backward(dq, dk, more_q, outer_k, heads, *norms, dheads)
    return dheads, dweights, *dcontext


@normed_attention_backward.register_fake
def _(
    outer: Tensor, outer_k: Any, outer_v: Any, heads: Tensor, q_weight: Tensor, k_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = [heads.new_empty(0) if x is None else empty_heads(x) for x in rest[:2]]
    dweights = heads.new_empty(2, heads.shape[-1], dtype=torch.float32)
    return heads.new_empty(heads.shape), dweights, context[0], context[1]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.kernel, ctx.shared = inputs
    ctx.save_for_backward(*tensors, *output[:2])


def _differentiate(ctx: Any, outer: Tensor, _lse: Tensor, *outer_kv: Tensor) -> tuple[Tensor | None, ...]:
    heads, q_weight, k_weight, *context, out, lse = ctx.saved_tensors
    shared = outer_kv if ctx.shared else (None, None)
    dheads, dweights, *dcontext = normed_attention_backward(
        outer, *shared, heads, q_weight, k_weight, *context, out, lse, ctx.eps, ctx.kernel
    )
    weights = (dweights[0].to(q_weight.dtype), dweights[1].to(k_weight.dtype))
    return dheads, *weights, *((None, None) if context[0] is None else dcontext), None, None, None


normed_attention.register_autograd(_differentiate, setup_context=_remember)

# The operator as programs of operators hold it.
NORMED = torch.ops.lvsm.normed_attention.default
