"""The MLP's matmuls with GELU inside them, by kernels of QuACK, and by torch's where those fail.

GELU and its gradient are computed while a matmul has its results in registers, so that nothing is read again for them.
QuACK (Dao-AILab, `requirements-fast.txt`) is imported when it is first wanted.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fused import HALF
from model.optional_kernels import FallibleKernels, why_not

MLPKernel = Literal["quack", "torch"]

_DEVICES = {"cuda"}
# What was measured to win on Hopper (benchmarks.mlp): so many tokens and more, of so many channels and more.
_TOKENS = 1024
_CHANNELS = 768
package = FallibleKernels(
    "QuACK failed, and torch's matmuls take its place; training.mlp_backend=torch does without the attempt"
)


def takes_quack(kernel: MLPKernel, x: Tensor) -> bool:
    """Whether QuACK computes the MLP of tokens [... d], which have the precision of the matmuls."""
    if kernel != "quack" or x.dtype not in HALF or x.device.type not in _DEVICES:
        return False
    d = x.shape[-1]
    # Rows of a multiple of 16 bytes.
    return d >= _CHANNELS and d % 8 == 0 and x.numel() >= _TOKENS * d


def mlp_by_quack(x: Tensor, up: Tensor, down: Tensor, save_slope: bool = False) -> Tensor:
    """GELU(x upᵀ) downᵀ of tokens [... d]; weights [4d d] and [d 4d] in the precision of the tokens.

    Args:
        save_slope: save GELU's slope and result instead of its input: two tensors [n 4d] for one, and a faster
            matmul in backward.
    """
    flat = x.flatten(0, -2)
    if torch.is_grad_enabled():
        y = (_SlopeMLP if save_slope else _MLP).apply(flat, up, down)
    else:
        y = gelu_of_up(flat, up) @ down.T
    return y.unflatten(0, x.shape[:-1])


class _MLP(torch.autograd.Function):
    """Saves what goes into GELU; what comes out of it is computed again on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        before, activated = up_gelu(x, up)
        ctx.save_for_backward(x, up, down, before)
        return activated @ down.T

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, up, down, before = ctx.saved_tensors
        outer_before, activated = gelu_backward(outer, down, before)
        return outer_before @ up, outer_before.T @ x, outer.T @ activated


class _SlopeMLP(torch.autograd.Function):
    """Saves the slope of GELU and what comes out of it, so that backward computes neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        slope, activated = slope_gelu(x, up)
        ctx.save_for_backward(x, up, down, slope, activated)
        return activated @ down.T

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, up, down, slope, activated = ctx.saved_tensors
        outer_before = slope_backward(outer, down, slope)
        return outer_before @ up, outer_before.T @ x, outer.T @ activated


@functools.cache
def why_no_quack() -> str | None:
    """Why QuACK's kernels cannot run in this process; None if they can."""
    return why_not(_quack)


@functools.cache
def _quack() -> Any:
    return importlib.import_module("model.gelu_epilogue")


def up_gelu_plainly(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """x upᵀ of tokens [n d] and weights [4d d], and GELU of it, both [n 4d]."""
    before = x @ up.T
    return before, F.gelu(before)


def slope_gelu_plainly(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """GELU's slope at x upᵀ of tokens [n d] and weights [4d d], and GELU of it, both [n 4d]."""
    before = x @ up.T
    return torch.ops.aten.gelu_backward(torch.ones_like(before), before), F.gelu(before)


def slope_backward_plainly(outer: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """The gradient of what goes into GELU [n 4d] from that of the result [n d], weights [d 4d] and GELU's slope."""
    return (outer @ down) * slope


def gelu_of_up_plainly(x: Tensor, up: Tensor) -> Tensor:
    """GELU(x upᵀ) [n 4d] of tokens [n d] and weights [4d d]."""
    return F.gelu(x @ up.T)


def gelu_backward_plainly(outer: Tensor, down: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `before` [n 4d] from that of GELU(before) downᵀ [n d], weights [d 4d]; and GELU(before)."""
    return torch.ops.aten.gelu_backward(outer @ down, before), F.gelu(before)


def _run(name: str, plain: Callable[..., Any], *args: Tensor) -> Any:
    """What QuACK's function of that name gives; `plain`, which is torch's, where it fails, from then on."""
    return package.run(lambda *given: getattr(_quack(), name)(*given), plain, *(x.contiguous() for x in args))


def _rows(x: Tensor, width: int) -> Tensor:
    return torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)


def _two_of_up(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _rows(x, up.shape[0]), _rows(x, up.shape[0])


@torch.library.custom_op("lvsm::up_gelu", mutates_args=())
def up_gelu(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """`up_gelu_plainly` as an operator that compilers know."""
    return _run("up_gelu", up_gelu_plainly, x, up)


up_gelu.register_fake(_two_of_up)


@torch.library.custom_op("lvsm::slope_gelu", mutates_args=())
def slope_gelu(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """`slope_gelu_plainly` as an operator that compilers know."""
    return _run("slope_gelu", slope_gelu_plainly, x, up)


slope_gelu.register_fake(_two_of_up)


@torch.library.custom_op("lvsm::slope_backward", mutates_args=())
def slope_backward(outer: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """`slope_backward_plainly` as an operator that compilers know."""
    return _run("slope_backward", slope_backward_plainly, outer, down, slope)


@slope_backward.register_fake
def _(outer: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    return _rows(outer, down.shape[1])


@torch.library.custom_op("lvsm::gelu_of_up", mutates_args=())
def gelu_of_up(x: Tensor, up: Tensor) -> Tensor:
    """`gelu_of_up_plainly` as an operator that compilers know."""
    return _run("gelu_of_up", gelu_of_up_plainly, x, up)


@gelu_of_up.register_fake
def _(x: Tensor, up: Tensor) -> Tensor:
    return _rows(x, up.shape[0])


@torch.library.custom_op("lvsm::gelu_backward", mutates_args=())
def gelu_backward(outer: Tensor, down: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """`gelu_backward_plainly` as an operator that compilers know."""
    return _run("gelu_backward", gelu_backward_plainly, outer, down, before)


@gelu_backward.register_fake
def _(outer: Tensor, down: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    return _rows(outer, down.shape[1]), _rows(outer, down.shape[1])


# The operators as programs of operators hold them.
MATMULS = {torch.ops.lvsm.up_gelu.default}
