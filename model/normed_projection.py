"""Queries, keys and values with the norms of the first two inside the matmul that gives them, by QuACK, for rendering.

In training the norms' backward wants the matmul's own results (`normed_attention`).
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from model.mlp_kernel import MLPKernel, package, takes_quack

# That of the model's norms, and the channels of a head that were measured.
EPS = 1e-5
_D_HEAD = 64


def takes_normed_projection(kernel: MLPKernel, x: Tensor, d_head: int, norm: nn.RMSNorm | None) -> bool:
    """Whether QuACK gives normalised queries and keys of tokens [... d]."""
    if torch.is_grad_enabled() or norm is None or norm.eps != EPS:
        return False
    return d_head == _D_HEAD and takes_quack(kernel, x)


def project_normed(x: Tensor, projection: Tensor, q_norm: nn.RMSNorm, k_norm: nn.RMSNorm) -> Tensor:
    """Queries and keys after their norms, and values, of tokens [b n d]: [b n 3d].

    Args:
        projection: weights [3d d] in the precision of `x`.
    """
    d = projection.shape[1]
    heads = d // len(q_norm.weight)
    ones = torch.ones(d, device=x.device)
    # Of each column what its normalised and its plain value count.
    weight = torch.cat([q_norm.weight.float().repeat(heads), k_norm.weight.float().repeat(heads), 0 * ones])
    plain = torch.cat([0 * ones, 0 * ones, ones])
    y = normed_qkv(x.flatten(0, -2), projection, weight, plain, len(q_norm.weight))
    return y.unflatten(0, x.shape[:-1])


@functools.cache
def _quack() -> Any:
    return importlib.import_module("model.norm_epilogue")


def normed_qkv_plainly(x: Tensor, projection: Tensor, weight: Tensor, plain: Tensor, d_head: int) -> Tensor:
    """y = x projectionᵀ of tokens [n d] and weights [3d d]; every head over its root mean square, times `weight` [3d]
    in float32, and y times `plain` [3d], summed."""
    y = x @ projection.T
    heads = y.float().unflatten(-1, (-1, d_head))
    normed = (heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPS)).flatten(-2)
    return (normed * weight + y * plain).to(y.dtype)


@torch.library.custom_op("lvsm::normed_qkv", mutates_args=())
def normed_qkv(x: Tensor, projection: Tensor, weight: Tensor, plain: Tensor, d_head: int) -> Tensor:
    """`normed_qkv_plainly` as an operator that compilers know."""

    def fast(*args: Any) -> Tensor:
        return _quack().normed_qkv(*args)

    args = (x.contiguous(), projection.contiguous(), weight, plain, d_head)
    return package.run(fast, normed_qkv_plainly, *args)


@normed_qkv.register_fake
def _(x: Tensor, projection: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], projection.shape[0])
