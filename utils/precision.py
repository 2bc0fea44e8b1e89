"""The precision that matmuls run in."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class PrecisionConfig:
    """`use_amp` runs matmuls in `amp_dtype` (torch.autocast); `use_tf32` lets GPUs round those that stay in float32."""

    use_amp: bool = True
    amp_dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    use_tf32: bool = True


def amp_dtype(cfg: PrecisionConfig) -> torch.dtype:
    """The type in which matmuls run under `autocast`."""
    return _AMP_DTYPES[cfg.amp_dtype] if cfg.use_amp else torch.float32


def autocast(cfg: PrecisionConfig, device: torch.device) -> AbstractContextManager[Any]:
    """What runs inside has its matmuls in `amp_dtype`."""
    dtype = amp_dtype(cfg)
    # Without autocast's cache of rounded weights: a layer that runs twice finds them there the second time, but not
    # when its checkpoint is computed again, and torch 2.14 refuses the difference.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)


def set_tf32(cfg: PrecisionConfig) -> None:
    """Allow or forbid TF32 in this process."""
    torch.set_float32_matmul_precision("high" if cfg.use_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.use_tf32
