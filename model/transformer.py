"""The transformer that both variants share (paper section 3.2). Attention lives here and nowhere else."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_INIT_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; the decoder-only variant reads `n_layer`, the other the three after it."""

    d: int = 768
    d_head: int = 64
    n_layer: int = 24
    encoder_n_layer: int = 12
    decoder_n_layer: int = 12
    n_latent_vectors: int = 3072
    special_init: bool = True
    depth_init: bool = True
    use_qk_norm: bool = True


class Attention(nn.Module):
    """Multi-head self-attention with RMS-normalised queries and keys, no biases, no mask."""

    def __init__(self, d: int, d_head: int, use_qk_norm: bool) -> None:
        super().__init__()
        self.d_head = d_head
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.q_norm = nn.RMSNorm(d_head, eps=1e-5) if use_qk_norm else None
        self.k_norm = nn.RMSNorm(d_head, eps=1e-5) if use_qk_norm else None

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """Every token is a key; `keep` names the tokens that are queries (all by default)."""
        q, k, v = (rearrange(t, "b n (h c) -> b h n c", c=self.d_head) for t in self._project(x, keep))
        q, k = self._normalize(self.q_norm, q, v), self._normalize(self.k_norm, k, v)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(self.d_head))
        return self.out(rearrange(attended, "b h n c -> b n (h c)"))

    def _project(self, x: Tensor, keep: slice | None) -> tuple[Tensor, ...]:
        if keep is None:
            return self.qkv(x).chunk(3, dim=-1)
        d = x.shape[-1]
        q = F.linear(x[:, keep], self.qkv.weight[:d])
        return q, *F.linear(x, self.qkv.weight[d:]).chunk(2, dim=-1)

    @staticmethod
    def _normalize(norm: nn.RMSNorm | None, heads: Tensor, like: Tensor) -> Tensor:
        return heads if norm is None else norm(heads.float()).to(like.dtype)


class MLP(nn.Module):
    """d -> 4d -> d with exact GELU and no biases."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Apply to every token."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm block: x += attention(LN(x)); x += mlp(LN(x))."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.d, bias=False)
        self.attn = Attention(cfg.d, cfg.d_head, cfg.use_qk_norm)
        self.norm2 = nn.LayerNorm(cfg.d, bias=False)
        self.mlp = MLP(cfg.d)

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """With `keep`, return only those tokens; the others serve as keys and values alone."""
        x = (x if keep is None else x[:, keep]) + self.attn(self.norm1(x), keep)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.ModuleList):
    """A stack of blocks, initialised as spec'd and optionally checkpointed in groups of layers.

    Args:
        n_layer: number of blocks, at least 1.
        checkpoint_every: layers per activation-checkpointed group while training; 0 keeps all activations.
    """

    def __init__(self, cfg: TransformerConfig, n_layer: int, checkpoint_every: int = 0) -> None:
        super().__init__(Block(cfg) for _ in range(n_layer))
        self.checkpoint_every = checkpoint_every
        for index, block in enumerate(self):
            init_linears(block, block_init_std(cfg, index, n_layer))

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """Run all blocks and return the tokens in `keep`; the last block computes no others."""
        if not (self.checkpoint_every and self.training and torch.is_grad_enabled()):
            return self._run(0, len(self), x, keep)
        bounds = [*range(0, len(self), self.checkpoint_every), len(self)]
        for start, stop in pairwise(bounds):
            x = checkpoint(self._run, start, stop, x, keep, use_reentrant=False)
        return x

    def _run(self, start: int, stop: int, x: Tensor, keep: slice | None) -> Tensor:
        for index in range(start, stop):
            x = self[index](x, keep if index == len(self) - 1 else None)
        return x


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
