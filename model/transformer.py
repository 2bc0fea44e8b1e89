"""The transformer that all variants share (paper section 3.2). Attention lives here and nowhere else."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from model.attention_kernel import (
    OwnKernel,
    apart_by,
    attend_apart,
    attend_by,
    attend_known,
    for_each_sequence,
    takes_fa4,
)
from model.compilation import Compilable
from model.fused import QK_EPS, gelu, layer_norm
from model.mlp_kernel import MLPKernel, mlp_by_quack, takes_quack
from model.normed_attention import attend_normed
from model.normed_projection import norm_shares, normed_qkv_into, project_normed, takes_normed_projection
from model.saving import SavePolicy, checkpoint_arguments, plan_saving
from utils.fields import bounded

_INIT_STD = 0.02

AttentionKernel = Literal["fa4", "cudnn", "flash", "efficient", "math"]
# "by_shape": "fa4" or "cudnn", and contexts joined or apart, as measured; "cudnn_by_shape": the same without "fa4".
KernelChoice = Literal["by_shape", "cudnn_by_shape", AttentionKernel]
ResidualDtype = Literal["fp32", "amp"]
CameraEncoding = Literal["none", "prope"]
# Where the first attention of a process runs.
_GPU = "cuda"
# Queries of a stack of which only keys and values are wanted.
NO_QUERIES = slice(0, 0)

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# By the kernel that is tried first. One that cannot take an input, as FlashAttention float32, leaves it to the next.
_PREFERENCES = {
    name: [first, *(other for other in _BACKENDS.values() if other != first)] for name, first in _BACKENDS.items()
}
# What FlashAttention-4 does not take goes to the fastest of torch's own kernels on its cards.
_PREFERENCES |= dict.fromkeys(("fa4", "by_shape", "cudnn_by_shape"), _PREFERENCES["cudnn"])


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; each variant says which of the lengths it reads.

    `camera_encoding` "prope" turns heads by the cameras of their tokens (Li et al., NeurIPS 2025); the published models
    do without. A head then has a multiple of 8 channels. "auto" is what the weights were trained with, and "none" for
    new ones.
    """

    d: int = bounded(768, 1, 65_536)
    d_head: int = bounded(64, 1, 65_536)
    n_layer: int = bounded(24, 1, 1000)
    encoder_n_layer: int = bounded(12, 1, 1000)
    decoder_n_layer: int = bounded(12, 1, 1000)
    n_latent_vectors: int = bounded(3072, 1, 1_000_000)
    special_init: bool = True
    depth_init: bool = True
    use_qk_norm: bool = True
    camera_encoding: Literal["auto", CameraEncoding] = "auto"


class KeysValues(NamedTuple):
    """Keys and values of `m` tokens as attention uses them: keys normalised, both turned by their cameras."""

    k: Float[Tensor, "b h m c"]
    v: Float[Tensor, "b h m c"]


class KVCache(NamedTuple):
    """Keys and values of a scene's `m` tokens, and behind them room where attention writes those of one sequence.

    So they need not be joined for every sequence. As projected they lie beside queries; the scene's are never read.
    """

    heads: Float[Tensor, "1 m+n 3*h c"]


class SideBySide(NamedTuple):
    """One row of tokens that are several sequences: what attends, and their counts as in `attend_normed`."""

    kernel: OwnKernel
    counts: tuple[int, ...]


@runtime_checkable
class Relative(Protocol):
    """How the cameras of tokens turn their heads [b n h c], so that attention sees relative cameras alone."""

    def queries(self, q: Tensor, norm: nn.RMSNorm | None, tokens: slice | None) -> Tensor:
        """Normalise and turn queries of `tokens`, or of all."""

    def keys(self, k: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Normalise and turn keys of all tokens."""

    def values(self, v: Tensor) -> Tensor:
        """Turn values of all tokens."""

    def results(self, attended: Tensor, tokens: slice | None) -> Tensor:
        """Turn what attention gives to `tokens`, or to all."""


@functools.cache
def settle_torchs_order() -> None:
    """Have torch set its own order of attention kernels now: it does so once, at the first attention on a GPU.

    Else that attention runs by torch's order though another was asked for, and by the other when it is computed again.
    """
    if torch.cuda.is_available():
        x = torch.zeros(1, 1, 8, 8, device=_GPU, dtype=torch.float16)
        F.scaled_dot_product_attention(x, x, x)


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: KernelChoice) -> Float[Tensor, "b h n c"]:
    """softmax(q kᵀ / √c) v of every head; `kernel` is tried first."""
    if takes_fa4(kernel, q, k.shape[2]):
        return attend_by("fa4", q, k, v)
    # Inside the function, since a compiled one does not see choices that are made around it.
    with sdpa_kernel(_PREFERENCES[kernel], set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]))


def normalize(heads: Float[Tensor, "b n h c"], norm: nn.RMSNorm | None) -> Float[Tensor, "b n h c"]:
    """Heads after the norm of queries or keys, computed in float32."""
    return heads if norm is None else norm(heads.float()).to(heads.dtype)


class MultiHead(nn.Module):
    """What kinds of attention share: heads, RMS norms of queries and keys, the projection behind; no biases, no mask.

    Args:
        projections: the width of every linear layer in front, by its name.
    """

    # Whether the own operator saves normalised queries and keys for backward, too.
    save_everything = False

    def __init__(self, d: int, d_head: int, use_qk_norm: bool, **projections: int) -> None:
        super().__init__()
        self.d_head = d_head
        self.kernel: KernelChoice = "flash"
        self.projection: MLPKernel = "torch"
        for name, width in projections.items():
            self.add_module(name, nn.Linear(d, width, bias=False))
        self.out = nn.Linear(d, d, bias=False)
        self.q_norm = nn.RMSNorm(d_head, eps=QK_EPS) if use_qk_norm else None
        self.k_norm = nn.RMSNorm(d_head, eps=QK_EPS) if use_qk_norm else None

    def _norm_weights(self) -> tuple[Tensor, Tensor]:
        """Those of queries and of keys, of a model with norms."""
        q, k = (norm.weight for norm in (self.q_norm, self.k_norm) if norm is not None)
        return q, k

    # Heads move by a view alone, so that nothing is copied on the way to the kernel and back.
    def _queries(
        self, q: Float[Tensor, "b m h c"], tokens: slice | None, relative: Relative | None
    ) -> Float[Tensor, "b m h c"]:
        return normalize(q, self.q_norm) if relative is None else relative.queries(q, self.q_norm, tokens)

    def _keys_values(
        self, k: Float[Tensor, "b n h c"], v: Float[Tensor, "b n h c"], relative: Relative | None
    ) -> KeysValues:
        k = normalize(k, self.k_norm) if relative is None else relative.keys(k, self.k_norm)
        v = v if relative is None else relative.values(v)
        return KeysValues(k.transpose(1, 2), v.transpose(1, 2))

    def _split_heads(self, x: Tensor) -> Float[Tensor, "b n h c"]:
        return x.unflatten(-1, (-1, self.d_head))

    def _results(
        self, attended: Float[Tensor, "b m h c"], tokens: slice | None, relative: Relative | None
    ) -> Float[Tensor, "b m d"]:
        turned = attended if relative is None else relative.results(attended, tokens)
        return self.out(turned.flatten(2))


class Attention(MultiHead):
    """Tokens attend to one another, and to context if there is any."""

    qkv: nn.Linear
    _shares: Tensor | None

    def __init__(self, d: int, d_head: int, use_qk_norm: bool) -> None:
        super().__init__(d, d_head, use_qk_norm, qkv=3 * d)
        self.register_buffer("_shares", None, persistent=False)

    @torch.no_grad()
    def settle_norms(self) -> None:
        """Prepare the norms of a model that only renders from now on; `train` and loading its weights undo that."""
        if self.q_norm is not None:
            self._shares = self._norm_shares()

    def train(self, mode: bool = True) -> "Attention":
        """As every module's; norms are no longer prepared in training."""
        self._shares = None if mode else self._shares
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._shares = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        queries: slice | None = None,
        context: KeysValues | KVCache | None = None,
        relative: Relative | None = None,
        return_kv: bool = False,
        side_by_side: SideBySide | None = None,
        known: Float[Tensor, "s k d"] | None = None,
    ) -> Float[Tensor, "b m d"] | tuple[Float[Tensor, "b m d"], KeysValues]:
        """Every token of `x` is a key and value; those in `queries`, or all, are queries.

        Args:
            context: further keys and values to attend to, of `b` sequences or fewer: those of the first serve as many
                sequences of `x` in a row as there are for each. With a cache all of `x` are queries, and no keys and
                values come back.
            relative: turns queries, keys, values and results by the cameras of the tokens in `x`.
            return_kv: also return the keys and values of `x`, which may be the context of other tokens.
            side_by_side: `x` is a row of sequences; nothing else is given then.
            known: tokens of `s` scenes, which stand behind those of `x` in as many sequences in a row for each, so that
                m is n + k. What they have to do with one another is computed once a scene. Nothing else is given then,
                and gradients do not go through it.
        """
        x = in_matmul_dtype(x)
        if known is not None:
            return self._with_known(x, in_matmul_dtype(known))
        if queries is None and context is None and relative is None and not return_kv:
            side_by_side = side_by_side or self._alone(x)
        if side_by_side is not None:
            return self._in_one_operator(x, side_by_side)
        if isinstance(context, KVCache):
            return self._results(self._attend_in_cache(x, context.heads, relative), None, relative)
        q, own = self._queries_keys_values(x, queries, relative)
        attended = attend_in_context(q, own, context, self.kernel).transpose(1, 2)
        result = self._results(attended, queries, relative)
        return (result, in_own_memory(own)) if return_kv else result

    def _in_one_operator(self, x: Float[Tensor, "b n d"], row: SideBySide) -> Float[Tensor, "b n d"]:
        """Norms and attention of all tokens in one operator."""
        heads = self._split_heads(self.qkv(x))
        attended = attend_normed(row.kernel, heads, *self._norm_weights(), row.counts, self.save_everything)
        return self._results(attended, None, None)

    def _alone(self, x: Float[Tensor, "b n d"]) -> SideBySide | None:
        """Sequences without context as a row, where one operator takes their norms and attention."""
        # Tokens as heads have the shape of queries.
        q = self._split_heads(x).transpose(1, 2)
        takes = self._normalizes_in_training() and takes_fa4(self.kernel, q, q.shape[2])
        return SideBySide("fa4", (*x.shape[:2], 0, 0)) if takes else None

    def _with_known(self, x: Tensor, known: Tensor) -> Float[Tensor, "b m d"]:
        q, own = self._queries_keys_values(x, None, None)
        known_q, context = self._queries_keys_values(known, None, None)
        attended = attend_in_context(q, own, context, self.kernel)
        of_known = attend_known(self.kernel, known_q, *context, own)
        return self._results(torch.cat([attended, of_known], dim=2).transpose(1, 2), None, None)

    def side_by_side_kernel(self, like: Tensor, counts: tuple[int, ...]) -> OwnKernel | None:
        """What attends in one operator to sequences, and to others that have them as context; None: nothing does.

        Args: as those of `apart_kernel`.
        """
        return self.apart_kernel(like, counts) if self._normalizes_in_training() else None

    def apart_kernel(self, like: Tensor, counts: tuple[int, ...]) -> OwnKernel | None:
        """What attends to a scene's tokens without a copy of them for every sequence; None: nothing does.

        Args:
            like: a number in the precision of the matmuls, where the tokens are.
            counts: as those of `attend_normed`.
        """
        s, m, b, n = counts
        h = self.out.in_features // self.d_head
        q = like.expand(b, h, n, self.d_head)
        return apart_by(self.kernel, q, q, like.expand(s, h, m, self.d_head))

    def _normalizes_in_training(self) -> bool:
        return self.q_norm is not None and torch.is_grad_enabled()

    def _attend_in_cache(
        self, x: Float[Tensor, "1 n d"], heads: Tensor, relative: Relative | None
    ) -> Float[Tensor, "1 n h c"]:
        n = x.shape[1]
        if self._projects_normed(x, relative):
            normed_qkv_into(x[0], *self._normed_projection(x), heads[0].flatten(1))
        else:
            q, keys_values = self._queries_keys_values(x, None, relative)
            heads[:, -n:].copy_(torch.cat([part.transpose(1, 2) for part in (q, *keys_values)], dim=2))
        q, k, v = (part.transpose(1, 2) for part in heads.chunk(3, dim=2))
        return attend(q[:, :, -n:], k, v, self.kernel).transpose(1, 2)

    def _projects_normed(self, x: Tensor, relative: Relative | None) -> bool:
        normed = relative is None and self.q_norm is not None
        return normed and takes_normed_projection(self.projection, x, self.d_head)

    def _normed_projection(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """What `project_normed` takes beside tokens."""
        shares = self._norm_shares() if self._shares is None else self._shares.float()
        return self.qkv.weight.to(x.dtype), shares, self.d_head

    def _queries_keys_values(
        self, x: Tensor, queries: slice | None, relative: Relative | None
    ) -> tuple[Float[Tensor, "b h m c"], KeysValues]:
        """Of tokens in the precision of the matmuls; queries and keys normalised, all turned by their cameras."""
        if queries is not None:
            q = self._split_heads(F.linear(x[:, queries], self.qkv.weight[: x.shape[-1]]))
            k, v = self._project_kv(x)
        elif self._projects_normed(x, relative):
            heads = self._split_heads(project_normed(x, *self._normed_projection(x)))
            q, k, v = (part.transpose(1, 2) for part in heads.chunk(3, dim=2))
            return q, KeysValues(k, v)
        else:
            q, k, v = self._split_heads(self.qkv(x)).chunk(3, dim=2)
        return self._queries(q, queries, relative).transpose(1, 2), self._keys_values(k, v, relative)

    def _norm_shares(self) -> Tensor:
        return norm_shares(*self._norm_weights(), self.out.in_features)

    def keys_values(self, x: Float[Tensor, "b n d"], relative: Relative | None = None) -> KeysValues:
        """The keys and values of `x` alone."""
        k, v = self._project_kv(x)
        return in_own_memory(self._keys_values(k, v, relative))

    def _project_kv(self, x: Tensor) -> tuple[Float[Tensor, "b n h c"], ...]:
        return self._split_heads(F.linear(x, self.qkv.weight[x.shape[-1] :])).chunk(2, dim=2)


def in_own_memory(own: KeysValues) -> KeysValues:
    """Keys and values in memory of their own: as views they would keep all that was projected with them."""
    return KeysValues(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in own))


def attend_in_context(
    q: Tensor, own: KeysValues, context: KeysValues | None, kernel: KernelChoice
) -> Float[Tensor, "b h n c"]:
    """Attention to the keys and values of one's own sequence, and to those of the context if there is any."""
    if context is None:
        return attend(q, *own, kernel)
    if apart := apart_by(kernel, q, own.k, context.k):
        return attend_apart(apart, q, *own, context)
    return attend(q, *join(context, own), kernel)


def join(context: KeysValues, own: KeysValues) -> KeysValues:
    """The context of a scene before the keys and values of every sequence of it."""
    return KeysValues(*(_join_one(theirs, ours) for theirs, ours in zip(context, own, strict=True)))


def _join_one(theirs: Float[Tensor, "s h m c"], ours: Float[Tensor, "b h n c"]) -> Float[Tensor, "b h k c"]:
    scenes = len(theirs)
    ours = ours.unflatten(0, (scenes, -1))
    theirs = theirs[:, None].expand(-1, ours.shape[1], -1, -1, -1)
    return torch.cat([theirs, ours], dim=3).flatten(0, 1)


def kv_cache(context: KeysValues, tokens: int) -> KVCache:
    """A scene's context, and room for a sequence of so many tokens."""
    k, v = (x.transpose(1, 2) for x in context)
    return KVCache(F.pad(torch.cat([torch.zeros_like(k), k, v], dim=2), (0, 0, 0, 0, 0, tokens)))


class CrossAttention(MultiHead):
    """Tokens attend to the context alone."""

    q: nn.Linear
    kv: nn.Linear

    def __init__(self, d: int, d_head: int, use_qk_norm: bool) -> None:
        super().__init__(d, d_head, use_qk_norm, q=d, kv=2 * d)

    def forward(
        self, x: Float[Tensor, "b n d"], context: KeysValues, relative: Relative | None = None
    ) -> Float[Tensor, "b n d"]:
        """Args: as those of `Attention`; all sequences of a scene are queries of one attention."""
        scenes = len(context.k)
        q = self._queries(self._split_heads(self.q(x)), None, relative)
        together = q.unflatten(0, (scenes, -1)).flatten(1, 2).transpose(1, 2)
        attended = attend(together, *context, self.kernel).transpose(1, 2)
        return self._results(attended.reshape(q.shape), None, relative)

    def keys_values(self, z: Float[Tensor, "b n d"], relative: Relative | None = None) -> KeysValues:
        """The context that tokens `z` are for others; `relative` turns by the cameras of `z`."""
        k, v = self._split_heads(self.kv(z)).chunk(2, dim=2)
        return in_own_memory(self._keys_values(k, v, relative))


class MLP(nn.Module):
    """d -> 4d -> d with exact GELU and no biases."""

    # Whether QuACK saves GELU's slope and result for backward, not its input.
    save_everything = False

    def __init__(self, d: int) -> None:
        super().__init__()
        self.kernel: MLPKernel = "torch"
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Apply to every token."""
        x = in_matmul_dtype(x)
        if takes_quack(self.kernel, x):
            return mlp_by_quack(x, self.up.weight.to(x.dtype), self.down.weight.to(x.dtype), self.save_everything)
        return self.down(gelu(self.up(x)))


def in_matmul_dtype(x: Tensor) -> Tensor:
    """`x` in the precision that matmuls have: that of autocast, where it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm without bias, in the form that runs fastest here."""

    def __init__(self, d: int, scaled: bool = True) -> None:
        super().__init__(d, elementwise_affine=scaled, bias=False)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalise every token."""
        return layer_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """Pre-norm block: x += attention(LN(x)); x += mlp(LN(x))."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(cfg.d)
        self.attn = Attention(cfg.d, cfg.d_head, cfg.use_qk_norm)
        self.norm2 = LayerNorm(cfg.d)
        self.mlp = MLP(cfg.d)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        queries: slice | None = None,
        context: KeysValues | KVCache | None = None,
        relative: Relative | None = None,
        return_kv: bool = False,
        side_by_side: SideBySide | None = None,
        known: Float[Tensor, "s k d"] | None = None,
    ) -> Float[Tensor, "b m d"] | tuple[Float[Tensor, "b m d"], KeysValues]:
        """All tokens, or only those in `queries`; the others then serve as keys and values alone.

        Of NO_QUERIES come no tokens, and keys and values in any case.

        Args: as those of `Attention`.
        """
        if queries == NO_QUERIES:
            return x[:, queries], self.attn.keys_values(self.norm1(x), relative)
        normed_known = None if known is None else self.norm1(known)
        attended = self.attn(self.norm1(x), queries, context, relative, return_kv, side_by_side, normed_known)
        if return_kv:
            attended, own = attended
        if known is not None:
            x = torch.cat([x, for_each_sequence(known, x)], dim=1)
        x = (x if queries is None else x[:, queries]) + attended
        x = x + self.mlp(self.norm2(x))
        return (x, own) if return_kv else x


class CrossBlock(nn.Module):
    """t += a self(LN(t)); t += a cross(LN(t), context); t += a mlp(LN(t)), with the context's own norm and projection.

    SVSM, "Scaling View Synthesis Transformers" (CVPR 2026).

    Args:
        scale: a.
    """

    def __init__(self, cfg: TransformerConfig, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # Without weights, which the linear layers behind them have anyway: these are the published sizes.
        self.norm1 = LayerNorm(cfg.d, scaled=False)
        self.attn = Attention(cfg.d, cfg.d_head, cfg.use_qk_norm)
        self.norm_cross = LayerNorm(cfg.d, scaled=False)
        self.norm_context = LayerNorm(cfg.d, scaled=False)
        self.cross = CrossAttention(cfg.d, cfg.d_head, cfg.use_qk_norm)
        self.norm2 = LayerNorm(cfg.d, scaled=False)
        self.mlp = MLP(cfg.d)

    def forward(
        self, x: Float[Tensor, "b n d"], *, context: KeysValues, relative: Relative | None = None
    ) -> Float[Tensor, "b n d"]:
        """All tokens, with what `context_of` gave for the scene."""
        x = x + self.scale * self.attn(self.norm1(x), relative=relative)
        x = x + self.scale * self.cross(self.norm_cross(x), context, relative)
        return x + self.scale * self.mlp(self.norm2(x))

    def context_of(self, z: Float[Tensor, "b n d"], relative: Relative | None = None) -> KeysValues:
        """This layer's keys and values of a scene's tokens."""
        return self.cross.keys_values(self.norm_context(z), relative)


class Transformer(Compilable, nn.ModuleList):
    """A stack of blocks.

    Args:
        n_layer: number of blocks, at least 1.
        block: makes one of them.
    """

    # What a group of so many layers saves for backward; if it is 0, there are none, and everything is saved.
    layers_per_group = 0
    save_policies: Sequence[SavePolicy] = ()
    # Where there are no groups, so many layers run in one piece.
    layers_per_piece = 1
    # Precision of the tokens from block to block under autocast: float32, or that of the matmuls.
    residual_dtype: ResidualDtype = "fp32"

    def __init__(
        self, cfg: TransformerConfig, n_layer: int, block: Callable[[TransformerConfig], nn.Module] = Block
    ) -> None:
        super().__init__(block(cfg) for _ in range(n_layer))
        for index, layer in enumerate(self):
            init_linears(layer, block_init_std(cfg, index, n_layer))

    def checkpoint_groups(self, layers_per_group: int, share: float) -> None:
        """Save `share` of the activations of groups of layers for backward, see `plan_saving`; 0 layers: everything."""
        self.layers_per_group = layers_per_group
        size = max(1, layers_per_group)
        self.save_policies = plan_saving(math.ceil(len(self) / size), share if layers_per_group else 2.0)
        for number, block in enumerate(self):
            for module in block.modules():
                if isinstance(module, MultiHead | MLP):
                    module.save_everything = self.save_policies[number // size] == SavePolicy.EVERYTHING

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        queries: slice | None = None,
        context: Sequence[KeysValues | KVCache] | None = None,
        relative: Relative | None = None,
        return_kv: bool = False,
    ) -> Float[Tensor, "b m d"] | tuple[Float[Tensor, "b m d"], tuple[KeysValues, ...]]:
        """Run all blocks and return the tokens in `queries`; the last block computes no others.

        Args: as those of `Attention`, with the context of every layer; the keys and values of every layer come back.

        Raises:
            ValueError: there is context of another number of layers.
        """
        if context is not None and len(context) != len(self):
            raise ValueError(f"context of {len(context)} layers for a stack of {len(self)}")
        return self._run_from(0, self._in_residual_dtype(x), queries, context, relative, return_kv)

    def _run_from(
        self,
        first: int,
        x: Tensor,
        queries: slice | None,
        context: Sequence[KeysValues | KVCache] | None,
        relative: Relative | None,
        return_kv: bool,
    ) -> Any:
        """Run the blocks from number `first` on."""
        blocks = tuple(self)
        kept: list[KeysValues] = []
        for layers, policy in self._groups(first):
            chosen = queries if layers.stop >= len(blocks) else None
            own_context = None if context is None else context[layers]
            x = self.run(_run_group, blocks[layers], x, chosen, policy, own_context, relative, return_kv)
            if return_kv:
                x, own = x
                kept += own
        return (x, tuple(kept)) if return_kv else x

    def side_by_side_kernel(self, like: Tensor, counts: tuple[int, ...]) -> OwnKernel | None:
        """What attends in `side_by_side`, by the counts of sequences and tokens; None: it cannot run.

        Args:
            like: one number [1 1 1 1], where the tokens are.
        """
        first = self._unchanged_first_block()
        return None if first is None else first.attn.side_by_side_kernel(in_matmul_dtype(like), counts)

    def takes_known(self, x: Float[Tensor, "b n d"], known: Float[Tensor, "s k d"]) -> bool:
        """Whether `with_known` should run, and not `forward`: in rendering, if scenes have several sequences each.

        Scores must be many, too: `apart_by` says how many.
        """
        first = self._unchanged_first_block()
        if first is None or torch.is_grad_enabled() or len(self) == 1:
            return False
        like = in_matmul_dtype(x[:1, :1, :1, None])
        return first.attn.apart_kernel(like, (*known.shape[:2], *x.shape[:2])) is not None

    def _unchanged_first_block(self) -> Block | None:
        """The first block; None if stack, block or attention has a `forward` of its own, which has to run."""
        first = self[0]
        if type(self).forward is not Transformer.forward or not isinstance(first, Block):
            return None
        unchanged = type(first).forward is Block.forward and type(first.attn).forward is Attention.forward
        return first if unchanged else None

    def with_known(
        self, x: Float[Tensor, "b n d"], known: Float[Tensor, "s k d"], queries: slice | None
    ) -> Float[Tensor, "b m d"]:
        """What `forward` gives for sequences, as many in a row for each scene, with the scene's tokens behind them.

        In the first of at least two blocks, what these have to do with one another is computed once a scene.

        Raises:
            RuntimeError: gradients are wanted, which do not go through it.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("with_known renders; gradients go through forward")
        tokens = (self._in_residual_dtype(part) for part in (x, known))
        return self._run_from(1, self.run(_run_with_known, self[0], *tokens), queries, None, None, False)

    def side_by_side(
        self, known: Float[Tensor, "s m d"], x: Float[Tensor, "b n d"], kernel: OwnKernel
    ) -> Float[Tensor, "b n d"]:
        """Run tokens that have those of their scene as context: as many sequences in a row for each of `known`.

        What `forward` gives for `x` with the keys and values of `known` as context, in fewer and larger pieces.
        """
        how = SideBySide(kernel, (*known.shape[:2], *x.shape[:2]))
        row = self._in_residual_dtype(torch.cat([part.flatten(0, 1)[None] for part in (known, x)], dim=1))
        blocks = tuple(self)
        for layers, policy in self._groups():
            but_the_last = blocks[layers.start : min(layers.stop, len(blocks) - 1)]
            if but_the_last:
                row = self.run(_run_group, but_the_last, row, None, policy, None, None, False, how)
        return self.run(_run_last_apart, blocks[-1], row, how.counts, policy)

    def _in_residual_dtype(self, x: Tensor) -> Tensor:
        if self.residual_dtype == "amp":
            return in_matmul_dtype(x)
        return x.float() if torch.is_autocast_enabled(x.device.type) else x

    def _groups(self, first: int = 0) -> list[tuple[slice, SavePolicy]]:
        """Layers that run in one piece, and what they save for backward.

        Args:
            first: the layer that they begin with, in rendering.
        """
        size = self.layers_per_group
        if size and self.training and torch.is_grad_enabled():
            return [(slice(i * size, (i + 1) * size), policy) for i, policy in enumerate(self.save_policies)]
        size = self.layers_per_piece
        return [(slice(i, i + size), SavePolicy.EVERYTHING) for i in range(first, len(self), size)]


def _run_group(
    blocks: Sequence[nn.Module],
    x: Tensor,
    queries: slice | None,
    policy: SavePolicy,
    context: Sequence[KeysValues | KVCache] | None,
    relative: Relative | None,
    return_kv: bool,
    side_by_side: SideBySide | None = None,
) -> Any:
    """Blocks in a row, the last for the tokens in `queries` alone; checkpointed unless `policy` is `EVERYTHING`.

    Compiled once for all groups of a shape. Tokens are cut in here: torch 2.11 fails on a tensor and a view of it.
    """

    def run(x: Tensor) -> Any:
        kept = []
        for number, block in enumerate(blocks):
            chosen = queries if number == len(blocks) - 1 else None
            own_context = None if context is None else context[number]
            wanted = {"queries": chosen, "context": own_context, "return_kv": return_kv}
            x = block(x, **_given(**wanted, relative=relative, side_by_side=side_by_side))
            if return_kv:
                x, own = x
                kept.append(own)
        return (x, kept) if return_kv else x

    if policy == SavePolicy.EVERYTHING:
        return run(x)
    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, **checkpoint_arguments(policy))


def _run_with_known(block: nn.Module, x: Tensor, known: Tensor) -> Any:
    return block(x, known=known)


def _run_last_apart(block: nn.Module, row: Tensor, counts: tuple[int, ...], policy: SavePolicy) -> Tensor:
    """The last block, of which the first sequences are wanted as context alone."""
    s, m, b, n = counts
    known = row[0, : s * m].unflatten(0, (s, m))
    x = row[0, s * m :].unflatten(0, (b, n))
    _, context = _run_group((block,), known, NO_QUERIES, policy, None, None, True)
    return _run_group((block,), x, None, policy, context, None, False)


def _given(**options: Any) -> dict[str, Any]:
    """Options that are not left out: a block need not know what is never asked of it."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def block_init_std(cfg: TransformerConfig, index: int, n_layer: int) -> float:
    """Standard deviation of the linears of block `index` (counting from 0) in a stack of `n_layer`."""
    if not cfg.special_init:
        return _INIT_STD
    return _INIT_STD / math.sqrt(2 * ((index + 1) if cfg.depth_init else n_layer))


def init_linears(module: nn.Module, std: float = _INIT_STD) -> None:
    """Draw every linear weight of `module` from N(0, std)."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=std)
