"""How a finished model runs, as opposed to what it computes: compilation, attention kernels, saved activations."""

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from model.attention_kernel import why_no_fa4
from model.compilation import Compilable, run_compiled, run_plainly
from model.mlp_kernel import MLPKernel, why_no_quack
from model.optional_kernels import HOPPER
from model.transformer import (
    MLP,
    AttentionKernel,
    KernelChoice,
    MultiHead,
    ResidualDtype,
    Transformer,
    settle_torchs_order,
)
from utils.fields import bounded

log = logging.getLogger("lvsm")

Module = TypeVar("Module", bound=nn.Module)

# Compiled forms of one function before torch gives up and runs further ones as they are.
_FORMS = 32


@dataclass(frozen=True)
class ExecutionConfig:
    """Choices that leave the numbers alone but for rounding; part of the `training` section of a configuration file.

    `grad_checkpoint_every` layers make a group of which only the input is saved for backward; a group is compiled in
    one piece, so that long ones take long. 0 saves everything: with QuACK also GELU's slope, with FlashAttention-4 also
    queries and keys after their norms.
    `keep_activations` from 0 to 1 is the share of what is worth saving that is saved all the same: first the results
    of attention, then those of matmuls. From 1 to 2 a part of the groups saves everything: with 1.5 half of them.
    `attention_backend` and `mlp_backend` name kernels; `compile` fuses what lies between the matmuls, "auto" where
    there is a GPU. Where layers make no groups, `compile_layers` of them are compiled in one piece: larger pieces save
    host time of small models, and take longer to compile. `residual_dtype` is the precision of the tokens from block to
    block: float32 as published, or with "amp" that of the matmuls: less to read and write, but rounded at every block.
    """

    grad_checkpoint_every: int = bounded(1, 0, 1000)
    keep_activations: float = bounded(0.4, 0, 2)
    attention_backend: Literal["auto", AttentionKernel] = "auto"
    mlp_backend: Literal["auto", MLPKernel] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    compile_layers: int = bounded(1, 1, 1000)
    residual_dtype: ResidualDtype = "fp32"


def apply_execution(model: Module, cfg: ExecutionConfig) -> Module:
    """Have a finished model run as `cfg` says, from now on; returns the model."""
    settle_torchs_order()
    for module in model.modules():
        if isinstance(module, MultiHead):
            module.kernel = attention_kernel(cfg.attention_backend)
            module.projection = mlp_kernel(cfg.mlp_backend)
        elif isinstance(module, MLP):
            module.kernel = mlp_kernel(cfg.mlp_backend)
        elif isinstance(module, Transformer):
            module.checkpoint_groups(cfg.grad_checkpoint_every, cfg.keep_activations)
            module.layers_per_piece = cfg.compile_layers
            module.residual_dtype = cfg.residual_dtype
    return compile_model(model, cfg)


def compile_model(model: Module, cfg: ExecutionConfig) -> Module:
    """Have those parts of a finished model that are worth compiling run compiled if `cfg` says so; returns the model.

    Its copies and pickles are compiled as well, and share no weights with it.
    """
    run = run_compiled if compiles(cfg) else run_plainly
    for module in model.modules():
        if isinstance(module, Compilable):
            module.run = run
    return model


def prepare_compiler(cfg: ExecutionConfig) -> None:
    """Settings of torch's compiler for this process, if anything is to be compiled in it."""
    if not compiles(cfg):
        return
    # One function serves all groups of layers: first and last, with gradients and without, one scene and more.
    torch._dynamo.config.cache_size_limit = max(_FORMS, torch._dynamo.config.cache_size_limit)
    # Else DDP has compiled blocks cut at the borders of its buckets, which they know nothing of.
    torch._dynamo.config.optimize_ddp = False
    # Warns of in-place operations in checkpointed layers, of which there are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def compile_each_shape(cfg: ExecutionConfig) -> None:
    """Have what is compiled in this process from now on compiled for every shape by itself.

    Where few shapes come again and again, these are fewer pieces than those of free sizes, of which torch learns one
    after another that they vary.
    """
    if compiles(cfg):
        torch._dynamo.config.automatic_dynamic_shapes = False


def compiles(cfg: ExecutionConfig) -> bool:
    """Whether to compile: as asked, else where there is a GPU and all that Triton needs to write its kernels."""
    if cfg.compile != "auto":
        return cfg.compile == "on"
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler and Path(sysconfig.get_path("include"), "Python.h").is_file():
        return True
    _warn_once(
        "Triton needs a C compiler and Python's headers (gcc and python3-dev, say), which are not here: nothing is "
        "compiled, and an update takes half as long again"
    )
    return False


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


@functools.cache
def attention_kernel(name: Literal["auto", AttentionKernel]) -> KernelChoice:
    """The attention kernel to try first: the one named, or for "auto" the fastest known.

    On Hopper that is FlashAttention-4 or cuDNN's, by shape; on newer cards cuDNN's, on older ones FlashAttention-2.
    Where FlashAttention-4 is wanted and cannot run, a line says why, and the fastest of torch's own kernels runs.
    """
    if name == "auto":
        return _fastest_kernel()
    why_not = why_no_fa4() if name == "fa4" else None
    if why_not is None:
        return name
    fallback = _torchs_fastest()
    _warn_once(f"attention: {fallback} first, since FlashAttention-4 cannot run ({why_not})")
    return fallback


@functools.cache
def mlp_kernel(name: Literal["auto", MLPKernel]) -> MLPKernel:
    """What computes the MLP: the kernels named, or for "auto" the fastest known, which are QuACK's on Hopper.

    Where QuACK is wanted and cannot run, a line says why, and torch's matmuls run.
    """
    if name == "torch" or (name == "auto" and not _is_hopper()):
        return "torch"
    why_not = why_no_quack()
    if why_not is None:
        if name == "auto":
            log.info("MLP: quack where tokens and channels are many")
        return "quack"
    if name == "auto":
        log.info("MLP: torch; QuACK would be faster for large models (%s)", why_not)
    else:
        _warn_once(f"MLP: torch, since QuACK cannot run ({why_not})")
    return "torch"


def _is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == HOPPER[0]


def _fastest_kernel() -> KernelChoice:
    fastest = _torchs_fastest()
    if not torch.cuda.is_available():
        return fastest
    if not _is_hopper() or fastest != "cudnn":
        log.info("attention: %s first", fastest)
        return fastest
    why_not = why_no_fa4()
    if why_not is None:
        log.info("attention: fa4 or cudnn, by shape")
        return "by_shape"
    log.info("attention: cudnn first; FlashAttention-4 would be faster (%s)", why_not)
    return "cudnn_by_shape"


def _torchs_fastest() -> AttentionKernel:
    """The fastest of the kernels that torch brings."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= HOPPER
    return "cudnn" if hopper and torch.backends.cudnn.is_available() else "flash"
