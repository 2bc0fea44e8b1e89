"""The transformer that both variants share (paper section 3.2). Attention lives here and nowhere else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from model.execution import ExecutionConfig, Keep, attention_backends, checkpoint_arguments, compiled, plan_keeping
from model.fused import gelu, layer_norm
from utils.fields import bounded

_INIT_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; the decoder-only variant reads `n_layer`, the other the three after it."""

    d: int = bounded(768, 1, 65_536)
    d_head: int = bounded(64, 1, 65_536)
    n_layer: int = bounded(24, 1, 1000)
    encoder_n_layer: int = bounded(12, 1, 1000)
    decoder_n_layer: int = bounded(12, 1, 1000)
    n_latent_vectors: int = bounded(3072, 1, 1_000_000)
    special_init: bool = True
    depth_init: bool = True
    use_qk_norm: bool = True


class Attention(nn.Module):
    """Multi-head self-attention with RMS-normalised queries and keys, no biases, no mask."""

    def __init__(self, d: int, d_head: int, use_qk_norm: bool, backend: str = "auto") -> None:
        super().__init__()
        self.d_head, self.backends = d_head, attention_backends(backend)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.q_norm = nn.RMSNorm(d_head, eps=1e-5) if use_qk_norm else None
        self.k_norm = nn.RMSNorm(d_head, eps=1e-5) if use_qk_norm else None

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """Every token of `x` is a key and value; those in `keep`, or all, are queries."""
        q, k, v = (rearrange(t, "b n (h c) -> b n h c", c=self.d_head) for t in self._project(x, keep))
        q, k = self._normalize(self.q_norm, q, v), self._normalize(self.k_norm, k, v)
        # Heads move by a view alone, so that nothing is copied on the way to the kernel and back.
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        # Inside the function, since a compiled one does not see choices that are made around it.
        with sdpa_kernel(self.backends, set_priority=True):
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
        return self.down(gelu(self.up(x)))


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm without bias, in the form that runs fastest here."""

    def __init__(self, d: int) -> None:
        super().__init__(d, bias=False)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalise every token."""
        return layer_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """Pre-norm block: x += attention(LN(x)); x += mlp(LN(x))."""

    def __init__(self, cfg: TransformerConfig, backend: str = "auto") -> None:
        super().__init__()
        self.norm1 = LayerNorm(cfg.d)
        self.attn = Attention(cfg.d, cfg.d_head, cfg.use_qk_norm, backend)
        self.norm2 = LayerNorm(cfg.d)
        self.mlp = MLP(cfg.d)

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """All tokens, or only those in `keep`; the others then serve as keys and values alone."""
        x = (x if keep is None else x[:, keep]) + self.attn(self.norm1(x), keep)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.ModuleList):
    """A stack of blocks, initialised as spec'd, run as `execution` says.

    Args:
        n_layer: number of blocks, at least 1.
    """

    def __init__(self, cfg: TransformerConfig, n_layer: int, execution: ExecutionConfig) -> None:
        super().__init__(Block(cfg, execution.attention_backend) for _ in range(n_layer))
        for index, block in enumerate(self):
            init_linears(block, block_init_std(cfg, index, n_layer))
        self.every = execution.grad_checkpoint_every
        self.levels = plan_keeping(math.ceil(n_layer / max(1, self.every)), execution.keep_activations)
        self.narrow = execution.residual_dtype == "amp"
        self._run_group = compiled(_run_group, execution)

    def forward(self, x: Float[Tensor, "b n d"], keep: slice | None = None) -> Float[Tensor, "b m d"]:
        """Run all blocks and return the tokens in `keep`; the last block computes no others."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type) if self.narrow else torch.float32)
        checkpointed = self.every and self.training and torch.is_grad_enabled()
        every, levels = (self.every, self.levels) if checkpointed else (1, [None] * len(self))
        blocks = tuple(self)
        for number, level in enumerate(levels):
            group = blocks[number * every : (number + 1) * every]
            x = self._run_group(group, x, keep if number == len(levels) - 1 else None, level)
        return x


def _run_group(blocks: Sequence[nn.Module], x: Tensor, keep: slice | None, level: Keep | None) -> Tensor:
    """Blocks in a row, the last for the tokens in `keep` alone; checkpointed unless `level` is None.

    Compiled once for all groups of a shape. Tokens are cut in here: torch 2.11 fails on a tensor and a view of it.
    """

    def run(x: Tensor) -> Tensor:
        for block in blocks[:-1]:
            x = block(x)
        return blocks[-1](x, keep)

    if level is None:
        return run(x)
    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, **checkpoint_arguments(level))


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
