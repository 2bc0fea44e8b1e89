"""One matmul by QuACK gives queries, keys and values, the first two normalised: for rendering.

In training the norms' backward wants the matmul's own results (`normed_attention`).
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from model.fused import QK_EPS
from model.mlp_kernel import MLPKernel, takes_quack
from model.optional_kernels import FallibleKernels

# Channels of a head that were measured.
_D_HEAD = 64
package = FallibleKernels(
    "QuACK's norms failed, and torch's take their place; training.mlp_backend=torch does without the attempt"
)


def takes_normed_projection(kernel: MLPKernel, x: Tensor, d_head: int) -> bool:
    """Whether QuACK gives normalised queries and keys of tokens [... d]."""
    return not torch.is_grad_enabled() and d_head == _D_HEAD and takes_quack(kernel, x)


def norm_shares(q_weight: Tensor, k_weight: Tensor, d: int) -> Tensor:
    """What a column's normalised and its plain value count in queries, keys and values [2 3d], in float32.

    Args:
        q_weight, k_weight: those of the norms [c].
    """
    norms = [weight.float().repeat(d // len(weight)) for weight in (q_weight, k_weight)]
    none = norms[0].new_zeros(3 * d)
    whole = norms[0].new_ones(d)
    # In one piece, which is one kernel.
    return torch.cat([*norms, none, whole]).unflatten(0, (2, -1))


def project_normed(x: Tensor, projection: Tensor, shares: Tensor, d_head: int) -> Tensor:
    """Queries and keys after their norms, and values, of tokens [b n d]: [b n 3d].

    Args:
        projection: weights [3d d] in the precision of `x`.
        shares: as `norm_shares` gives them.
    """
    return normed_qkv(x.flatten(0, -2), projection, shares, d_head).unflatten(0, x.shape[:-1])


@functools.cache
def _quack() -> Any:
    return importlib.import_module("model.norm_epilogue")


def normed_qkv_plainly(x: Tensor, projection: Tensor, shares: Tensor, d_head: int) -> Tensor:
    """y = x projectionᵀ of tokens [n d] and weights [3d d], and each head of it over its root mean square.

    Args:
        shares: what the latter and the former count in every column of the sum that is returned [2 3d].
    """
    y = x @ projection.T
    heads = y.float().unflatten(-1, (-1, d_head))
    normed = (heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + QK_EPS)).flatten(-2)
    return (normed * shares[0] + y * shares[1]).to(y.dtype)


@torch.library.custom_op("lvsm::normed_qkv", mutates_args=())
def normed_qkv(x: Tensor, projection: Tensor, shares: Tensor, d_head: int) -> Tensor:
    """`normed_qkv_plainly` as an operator that compilers know."""
    into = x.new_empty(x.shape[0], projection.shape[0])
    normed_qkv_into(x, projection, shares, d_head, into)
    return into


@normed_qkv.register_fake
def _(x: Tensor, projection: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], projection.shape[0])


@torch.library.custom_op("lvsm::normed_qkv_into", mutates_args=("into",))
def normed_qkv_into(x: Tensor, projection: Tensor, shares: Tensor, d_head: int, into: Tensor) -> None:
    """The same, written to the last rows of contiguous memory [m+n 3d].

    Which rows is said in here: given a view, torch's compiler takes its beginning for that of the memory wherever the
    number of tokens varies.
    """
    args = (x.contiguous(), projection.contiguous(), shares, d_head, into[-len(x) :])
    package.run(lambda *given: _quack().normed_qkv(*given), _write_plainly, *args)


@normed_qkv_into.register_fake
def _(*_: Any) -> None:
    return None


def _write_plainly(x: Tensor, projection: Tensor, shares: Tensor, d_head: int, into: Tensor) -> None:
    into.copy_(normed_qkv_plainly(x, projection, shares, d_head))
