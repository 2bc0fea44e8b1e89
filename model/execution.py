"""How a model runs, as opposed to what it computes: compilation, attention kernels, activations kept for backward."""

import functools
import importlib.util
import logging
import math
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from utils.errors import InputError
from utils.fields import bounded
from utils.text import printable, shown

log = logging.getLogger("lvsm")

F = TypeVar("F", bound=Callable[..., Any])

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION_BACKENDS = ("auto", *_BACKENDS)
COMPILE_MODES = ("auto", "on", "off")
RESIDUAL_DTYPES = ("fp32", "amp")

_ATEN = torch.ops.aten
_ATTENTION_OPS = {
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}
# Means and variances of the tokens, where they are results of their own: small, and kept always.
_STATISTICS = _ATEN.var_mean.correction
# Memory of what a block may keep, in outputs of one token: attention, then the products (3 for q k v, 1 behind
# attention, 4 in the MLP).
_ATTENTION_UNITS, _PRODUCT_UNITS = 1, 8
# Characters of a compiler's error that a message shows.
_SHOWN = 300
# Compiled variants of one function before torch gives up and runs further ones as they are.
_VARIANTS = 32


@dataclass(frozen=True)
class ExecutionConfig:
    """Choices that leave the numbers alone but for rounding; part of the `training` section of a configuration file.

    `grad_checkpoint_every` layers make a group of which only the input is kept for backward (0: everything is kept);
    a group is compiled in one piece, so that long ones take long.
    `keep_activations` from 0 to 1 is the share of what is worth keeping that is kept all the same: first the results
    of attention, then those of matrix products. `attention_backend` names a kernel; `compile` fuses what lies between
    the products, "auto" where there is a GPU. `residual_dtype` is the precision of the tokens from block to block:
    float32 as published, or with "amp" that of the products: less to read and write, but rounded at every block.
    """

    grad_checkpoint_every: int = bounded(1, 0, 1000)
    keep_activations: float = bounded(0.4, 0, 1)
    attention_backend: str = "auto"
    compile: str = "auto"
    residual_dtype: str = "fp32"


def check_execution_config(cfg: ExecutionConfig) -> None:
    """Raises InputError, naming the key, for values that cannot be."""
    choices = {"attention_backend": ATTENTION_BACKENDS, "compile": COMPILE_MODES, "residual_dtype": RESIDUAL_DTYPES}
    for key, known in choices.items():
        if getattr(cfg, key) not in known:
            raise InputError(f"training.{key} is {shown(getattr(cfg, key))}; known: {', '.join(known)}")


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


def compiled(function: F, cfg: ExecutionConfig) -> F:
    """`function`, compiled if `cfg` says so.

    Shapes are constants at first; the second one met makes what changed a variable, so there is no third time. Where
    the compiler fails, this and all other functions run as they are from then on; a line says so.
    """
    if not compiles(cfg):
        return function
    # One function serves all blocks: kept activations, first and last, with gradients and without, one scene and more.
    torch._dynamo.config.cache_size_limit = max(_VARIANTS, torch._dynamo.config.cache_size_limit)
    # Else DDP has compiled blocks cut at the borders of its buckets, which they know nothing of.
    torch._dynamo.config.optimize_ddp = False
    # Warns of in-place operations in checkpointed layers, of which there are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    return _with_fallback(function, torch.compile(function))


def _with_fallback(function: F, fast: Callable[..., Any]) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Inside other compiled code it is not compiled by itself.
        if torch.compiler.is_compiling() or _failed:
            return function(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except _compiler_errors() as error:
            # An error of the model's own comes again here, as itself.
            result = function(*args, **kwargs)
            _failed.append(error)
            first = " ".join(str(error).split())
            log.warning(
                "compiling failed, so that nothing is compiled and an update takes half as long again; "
                "training.compile=off does without the attempt (%s: %s)",
                type(error).__name__,
                printable(first, _SHOWN),
            )
            return result

    return run  # type: ignore[return-value]


# Why the compiler was given up, if it was.
_failed: list[BaseException] = []


@functools.cache
def _compiler_errors() -> tuple[type[BaseException], ...]:
    """What a failing compiler raises: torch's own, and those of the programs that it starts."""
    import torch._inductor.exc as inductor

    own = [getattr(inductor, name) for name in ("InductorError", "CppCompileError") if hasattr(inductor, name)]
    return (torch._dynamo.exc.TorchDynamoException, subprocess.SubprocessError, *own)


@functools.lru_cache
def attention_backends(name: str) -> list[SDPBackend]:
    """Attention kernels by preference: the one named, or for "auto" the fastest known, then all others.

    cuDNN's is the fastest on Hopper and later (capability 9), FlashAttention before. A kernel that cannot take an
    input, such as FlashAttention float32, leaves it to the next.
    """
    if name == "auto":
        hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
        name = "cudnn" if hopper and torch.backends.cudnn.is_available() else "flash"
        if torch.cuda.is_available():
            log.info("attention: %s first", name)
    first = _BACKENDS[name]
    return [first, *(backend for backend in _BACKENDS.values() if backend != first)]


class Keep(IntEnum):
    """What a checkpointed group of layers keeps for backward besides its input."""

    NOTHING = 0
    ATTENTION = 1
    PRODUCTS = 2


def plan_keeping(num_groups: int, share: float) -> list[Keep]:
    """What each group of layers keeps, so that together they keep about `share` of all that is worth keeping.

    Attention comes first: it costs most for its memory. The last groups keep most, since they are the first that
    backward frees.
    """
    units = share * num_groups * (_ATTENTION_UNITS + _PRODUCT_UNITS) + 1e-6
    attention = min(num_groups, math.floor(units / _ATTENTION_UNITS))
    products = min(num_groups, max(0, math.floor((units - attention * _ATTENTION_UNITS) / _PRODUCT_UNITS)))
    levels = [Keep.NOTHING] * (num_groups - attention) + [Keep.ATTENTION] * attention
    return levels[: num_groups - products] + [Keep.PRODUCTS] * products


def _policy(level: Keep, _context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep statistics, and by level attention and products; not a block's last product, which backward never reads."""
    kept = op is _STATISTICS or (level >= Keep.ATTENTION and op in _ATTENTION_OPS)
    if level >= Keep.PRODUCTS and op is _ATEN.mm.default:
        kept = args[0].shape[1] <= args[1].shape[1]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_CONTEXTS = {
    level: functools.partial(create_selective_checkpoint_contexts, functools.partial(_policy, level)) for level in Keep
}


def checkpoint_arguments(level: Keep) -> dict[str, Any]:
    """Arguments of torch's `checkpoint` for a level; only compiled code has statistics to keep."""
    if level == Keep.NOTHING and not torch.compiler.is_compiling():
        return {}
    return {"context_fn": _CONTEXTS[level]}
