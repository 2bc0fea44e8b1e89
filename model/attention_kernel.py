"""Attention by FlashAttention-4 where it is the fastest, and by cuDNN's kernel where it fails.

One operator for compilers and autograd. Both kernels give and take the log-sum-exp of the scores, so that cuDNN's can
take over anywhere. FlashAttention-4 (Dao et al., `requirements-fast.txt`) is imported when it is first wanted.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from model.fused import HALF
from model.optional_kernels import FallibleKernels, why_not, written_in_triton

_ATEN = torch.ops.aten
_PACKAGE = "flash_attn.cute.interface"
_DEVICES = {"cuda"}
_DTYPES = HALF
# What was measured on Hopper at heads of 64 channels in 16 bits (benchmarks.attention, benchmarks.render). From so many
# scores on, FlashAttention-4 is the fastest, and a context had better be attended to apart, by cuDNN's kernel as well.
# Rendering has bounds of its own: its kernels are recorded, so that FlashAttention-4's host work does not show.
_MEASURED_HEAD = 64
_SCORES = 400_000_000
_SCORES_RENDERING = 100_000_000
_SCORES_APART_RENDERING = 300_000_000
# Of fewer queries cuDNN's forward is faster, unless every small tile of them has a multiprocessor of its own: then
# FlashAttention-4 is, from fewer scores on.
_QUERIES_RENDERING = 2048
_SMALL_TILE = (128, 128)
# Of an H100 SXM and an H200.
_MULTIPROCESSORS = 132
_SCORES_IN_ONE_ROUND = 25_000_000
# Channels of a head that it takes: multiples of 8, up to so many.
_WIDEST_HEAD = 128
package = FallibleKernels(
    "FlashAttention-4 failed, and cuDNN's attention takes its place; training.attention_backend=cudnn does without the "
    "attempt"
)

OwnKernel = Literal["fa4", "cudnn"]


def attend_by(kernel: OwnKernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √c) v of heads [b h n c], computed in the layout [b n h c], which costs a view alone."""
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), kernel)[0].transpose(1, 2)


def attend_apart(kernel: OwnKernel, q: Tensor, k: Tensor, v: Tensor, context: Sequence[Tensor]) -> Tensor:
    """As `attend_by`, to one's own keys and values and to the context's, of which no sequence gets a copy.

    Args:
        context: keys and values [s h m c] of `s` scenes, each for as many sequences of `q` in a row.
    """
    heads = (x.transpose(1, 2) for x in (q, k, v, *context))
    return attention_apart(*heads, kernel)[0].transpose(1, 2)


def attend_known(kernel: str, q: Tensor, k: Tensor, v: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Attention of scenes' tokens [s h m c] to themselves, computed once a scene, and to those of every sequence.

    For rendering: gradients do not go through it.

    Args:
        kernel: the model's choice, by which each of the two attentions runs by FlashAttention-4 or by cuDNN.
        others: keys and values [b h n c] of sequences, as many in a row for each scene.

    Returns:
        What the scene's tokens get in every sequence [b h m c].
    """
    other_k, other_v = others
    own, own_lse = (for_each_sequence(x, other_k) for x in _attention_to(kernel, q, k, v))
    other, other_lse = _attention_to(kernel, for_each_sequence(q, other_k), other_k, other_v)
    merged = empty_heads(other)
    merge_plainly(own, own_lse, other, other_lse, merged)
    return merged.transpose(1, 2)


def for_each_sequence(x: Tensor, sequences: Tensor) -> Tensor:
    """What scenes have [s ...], for each of their sequences [b ...]."""
    return x.repeat_interleave(len(sequences) // len(x), dim=0)


def _attention_to(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What the operator `attention` gives for heads [b h n c], by the kernel that this choice means for their shape."""
    by: OwnKernel = "fa4" if takes_fa4(kernel, q, k.shape[2]) else "cudnn"
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), by)


def takes_fa4(kernel: str, q: Tensor, keys: int) -> bool:
    """Whether FlashAttention-4 computes attention of queries [b h n c] to so many keys, or torch's kernels do.

    "fa4" wants it wherever it can, "by_shape" where it was measured to win.
    """
    if kernel not in ("fa4", "by_shape") or not _is_of_16_bits_on_gpu(q):
        return False
    if kernel == "fa4":
        return q.shape[-1] % 8 == 0 and q.shape[-1] <= _WIDEST_HEAD
    if torch.is_grad_enabled():
        return _has_scores(q, keys, _SCORES)
    if _in_one_round(*q.shape):
        return _has_scores(q, keys, _SCORES_IN_ONE_ROUND)
    return _has_scores(q, keys, _SCORES_RENDERING) and q.shape[2] >= _QUERIES_RENDERING


def _in_one_round(b: int, h: int, n: int, c: int) -> bool:
    """Whether there is a multiprocessor for each small tile of the queries, at heads for which that was measured."""
    tiles = b * h * ((n + _SMALL_TILE[0] - 1) // _SMALL_TILE[0])
    return c == _MEASURED_HEAD and tiles <= _MULTIPROCESSORS


def apart_by(kernel: str, q: Tensor, k: Tensor, context_k: Tensor) -> OwnKernel | None:
    """What computes attention of several sequences to their context's keys [s h m c] apart, without copies of them.

    None where copies of the context are joined to each sequence's keys: where every sequence has a context of its own,
    where scores are few, and where a kernel other than "fa4" was named.
    """
    if len(q) == len(context_k):
        return None
    keys = k.shape[2] + context_k.shape[2]
    if takes_fa4(kernel, q, keys) and (kernel == "fa4" or torch.is_grad_enabled()):
        return "fa4"
    if kernel not in ("by_shape", "cudnn_by_shape") or not _is_of_16_bits_on_gpu(q):
        return None
    least = _SCORES if torch.is_grad_enabled() else _SCORES_APART_RENDERING
    return "cudnn" if _has_scores(q, keys, least) else None


def _is_of_16_bits_on_gpu(q: Tensor) -> bool:
    return q.dtype in _DTYPES and q.device.type in _DEVICES


def _has_scores(q: Tensor, keys: int, least: int) -> bool:
    b, h, n, c = q.shape
    return c == _MEASURED_HEAD and b * h * n * keys >= least


@functools.cache
def why_no_fa4() -> str | None:
    """Why FlashAttention-4 cannot run in this process; None if it can."""
    return why_not(lambda: _check_interface(_fa4()))


@functools.cache
def _fa4() -> Any:
    # The package warns of an argument that is left out each time it compiles a kernel.
    warnings.filterwarnings("ignore", "Argument aux_data ", UserWarning)
    return importlib.import_module(_PACKAGE)


def _check_interface(interface: Any) -> None:
    """Raise AttributeError for a package without the two functions that are called."""
    for name in ("_flash_attn_fwd", "_flash_attn_bwd"):
        getattr(interface, name)


def _fa4_forward(q: Tensor, k: Tensor, v: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    b, n, h, c = q.shape
    tile = _SMALL_TILE if _in_one_round(b, h, n, c) else None
    # Later versions return more.
    out, lse, *_ = _fa4()._flash_attn_fwd(q, k, v, return_lse=True, out=into, tile_mn=tile)
    return out, lse


def _fa4_backward(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *into: Tensor
) -> tuple[Tensor, ...]:
    dq, dk, dv = into or map(empty_heads, (q, k, v))
    _fa4()._flash_attn_bwd(q, k, v, out, outer.contiguous(), lse, dq=dq, dk=dk, dv=dv)
    return dq, dk, dv


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    heads = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = _ATEN._scaled_dot_product_cudnn_attention(*heads, None, True)
    attended = out.transpose(1, 2)
    return attended.contiguous() if into is None else into.copy_(attended), lse.reshape(out.shape[:3]).contiguous()


def _cudnn_backward(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *into: Tensor
) -> tuple[Tensor, ...]:
    heads = (x.transpose(1, 2) for x in (outer, q, k, v, out))
    # Seed and offset of dropout, of which there is none.
    unused = torch.zeros((), dtype=torch.int64, device=q.device)
    sizes = (None, None, None, q.shape[1], k.shape[1])
    gradients = _ATEN._scaled_dot_product_cudnn_attention_backward(
        *heads, lse[..., None], unused, unused, *sizes, 0.0, False
    )
    found = [x.transpose(1, 2) for x in gradients]
    if into:
        return tuple(place.copy_(x) for place, x in zip(into, found, strict=True))
    return tuple(x.contiguous() for x in found)


_FORWARD = {"fa4": _fa4_forward, "cudnn": _cudnn_forward}
_BACKWARD = {"fa4": _fa4_backward, "cudnn": _cudnn_backward}


def _run(kernels: dict[str, Any], name: str, *heads: Tensor | None) -> Any:
    """The kernel's result; cuDNN's where FlashAttention-4 fails, from then on."""
    return package.run(kernels[name], kernels["cudnn"], *heads) if name == "fa4" else kernels[name](*heads)


def own_attention(kernel: str, q: Tensor, k: Tensor, v: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the operator `attention` gives, inside another; what tokens get is written to `into` if it is there."""
    return _run(_FORWARD, kernel, q, k, v, into)


def attention_gradients(kernel: str, saved: Sequence[Tensor], into: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """The gradients of queries, keys and values, written to the places `into` if there are some.

    Args:
        saved: the gradient of what attention gave, its heads, what it gave and the log-sum-exp.
    """
    return _run(_BACKWARD, kernel, *saved, *into)


def empty_heads(x: Tensor) -> Tensor:
    """Uninitialised heads of that shape, those of a token side by side."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("lvsm::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √c) v of heads [b n h c], and the log-sum-exp of the scores [b h n] in float32.

    Args:
        kernel: also that of the gradients.
    """
    return own_attention(kernel, q, k, v)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    b, n, h, _c = q.shape
    return empty_heads(q), torch.empty(b, h, n, dtype=torch.float32, device=q.device)


@torch.library.custom_op("lvsm::attention_backward", mutates_args=())
def attention_backward(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values; `out` and `lse` are what `attention` gave."""
    dq, dk, dv = attention_gradients(kernel, (outer, q, k, v, out, lse))
    return dq, dk, dv


@attention_backward.register_fake
def _(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_heads(q), empty_heads(k), empty_heads(v)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *heads, ctx.kernel = inputs
    ctx.save_for_backward(*heads, *output)


def _differentiate(ctx: Any, outer: Tensor, _outer_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *attention_backward(outer, *ctx.saved_tensors, ctx.kernel), None


attention.register_autograd(_differentiate, setup_context=_remember)

# Attention to one's own keys and to those of a context, apart. A softmax over both is each one's, weighted by its share
# of the sum of exponentials; and each one's gradients follow from the results of both together (Liu et al., "Ring
# Attention with Blockwise Transformers for Near-Infinite Context", 2023).


@torch.library.custom_op("lvsm::attention_apart", mutates_args=())
def attention_apart(
    q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, kernel: str
) -> tuple[Tensor, Tensor]:
    """What `attention` gives for heads [b n h c] and the keys and values of a context [s m h c] beside their own."""
    return attend_own_and_context(kernel, q, k, v, context_k, context_v)


@attention_apart.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    b, n, h, _c = q.shape
    return empty_heads(q), torch.empty(b, h, n, dtype=torch.float32, device=q.device)


@torch.library.custom_op("lvsm::attention_apart_backward", mutates_args=())
def attention_apart_backward(
    outer: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_k: Tensor,
    context_v: Tensor,
    out: Tensor,
    lse: Tensor,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values, the context's last."""
    dq, dk, dv = attention_gradients(kernel, (outer, q, k, v, out, lse))
    more_dq, context_dk, context_dv = context_gradients(kernel, outer, q, context_k, context_v, out, lse)
    return dq.add_(more_dq), dk, dv, context_dk, context_dv


@attention_apart_backward.register_fake
def _(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_heads(q), empty_heads(k), empty_heads(v), empty_heads(context_k), empty_heads(context_v)


def _differentiate_apart(ctx: Any, outer: Tensor, _outer_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *attention_apart_backward(outer, *ctx.saved_tensors, ctx.kernel), None


attention_apart.register_autograd(_differentiate_apart, setup_context=_remember)


def attend_own_and_context(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the operator `attention_apart` gives, inside another; `into` as that of `own_attention`."""
    own = own_attention(kernel, q, k, v)
    out, lse = own_attention(kernel, _together(q, context_k), context_k, context_v)
    merged = empty_heads(q) if into is None else into
    return merged, _merge(q)(*own, out.reshape(q.shape), _apart_again(lse, len(q)), merged)


def context_gradients(
    kernel: str, outer: Tensor, q: Tensor, context_k: Tensor, context_v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of attention apart, the context's part of the queries' gradient, and the gradients of its keys and values."""
    together = [_together(x, context_k) for x in (outer, q, out)]
    saved = (*together[:2], context_k, context_v, together[2], _together_again(lse, len(context_k)))
    dq, dk, dv = attention_gradients(kernel, saved)
    return dq.reshape(q.shape), dk, dv


def _together(x: Tensor, context: Tensor) -> Tensor:
    """All sequences of a scene [b n h c] as one [s tn h c]."""
    return x.unflatten(0, (len(context), -1)).flatten(1, 2)


def _together_again(lse: Tensor, scenes: int) -> Tensor:
    """The log-sum-exp of sequences [b h n] as that of scenes [s h tn]."""
    return lse.unflatten(0, (scenes, -1)).transpose(1, 2).flatten(2).contiguous()


def _apart_again(lse: Tensor, sequences: int) -> Tensor:
    """The log-sum-exp of scenes [s h tn] as that of sequences [b h n]."""
    return lse.unflatten(2, (sequences // len(lse), -1)).transpose(1, 2).flatten(0, 1).contiguous()


def merge_plainly(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor, merged: Tensor) -> Tensor:
    """The attention to two sets of keys from that to each [b n h c], written to `merged`; its log-sum-exp [b h n]."""
    total = torch.logaddexp(lse, other_lse)
    share = (lse - total).exp().transpose(1, 2)[..., None]
    merged.copy_(share * out + (1 - share) * other)
    return total


def _merge(x: Tensor) -> Callable[..., Tensor]:
    """The form that runs fastest where `x` is."""
    fast = written_in_triton("model.merge_kernel", "merge_fast") if x.is_cuda else None
    return fast or merge_plainly


# The operators as programs of operators hold them.
OPERATORS = {torch.ops.lvsm.attention.default, torch.ops.lvsm.attention_apart.default}
