"""The optimiser, the learning-rate schedule and the rule for skipping updates."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from utils.checkpoint import WEIGHTS_ALONE
from utils.errors import InputError
from utils.fields import bounded
from utils.tensors import tensor_fault
from utils.text import shown

# What AdamW keeps of every parameter.
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and gradient clipping."""

    lr: float = bounded(4e-4, 0, 100, open_below=True)
    beta1: float = bounded(0.9, 0, 1, open_above=True)
    beta2: float = bounded(0.95, 0, 1, open_above=True)
    weight_decay: float = bounded(0.05, 0, 1, open_above=True)
    warmup: int = bounded(3000, 0, 1_000_000_000)
    train_steps: int = bounded(100_000, 1, 1_000_000_000)
    scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    grad_clip_norm: float = bounded(1.0, 0, 1_000_000, open_below=True)
    allowed_gradnorm_factor: float = bounded(5.0, 0, 1_000_000, open_below=True)


def lr_at(step: int, cfg: OptimConfig) -> float:
    """Learning rate of the update that follows `step` updates.

    Linear from 0 to `lr` over `warmup` updates, then by `scheduler_type`: half a cosine or a line down to 0 at
    `train_steps`, or constant.
    """
    if step < cfg.warmup:
        return cfg.lr * step / cfg.warmup
    if cfg.scheduler_type == "constant":
        return cfg.lr
    progress = min(1.0, (step - cfg.warmup) / max(1, cfg.train_steps - cfg.warmup))
    factor = 1 - progress if cfg.scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return cfg.lr * factor


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on everything but 1-D parameters (norm weights)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=True)


def load_optimizer(optimizer: torch.optim.AdamW, state: Mapping[str, Any], source: object) -> None:
    """Take copies of the moments of a saved optimiser; betas and weight decay stay those of the configuration.

    The fused kernel trusts shapes and types, so everything is checked before.

    Raises:
        InputError: the moments belong to another model, or one is not what it should be.
    """
    own = optimizer.state_dict()["param_groups"]
    saved = state.get("param_groups")
    if _numbers(saved) != _numbers(own):
        raise InputError(f"{source}: its optimiser state belongs to another model: {WEIGHTS_ALONE}")
    parameters = {
        number: parameter
        for named, group in zip(own, optimizer.param_groups, strict=True)
        for number, parameter in zip(named["params"], group["params"], strict=True)
    }
    moments = state.get("state")
    if not isinstance(moments, Mapping) or moments.keys() != parameters.keys():
        raise InputError(f"{source}: its optimiser state is of other parameters than this model's: {WEIGHTS_ALONE}")
    loaded = {}
    for number, parameter in parameters.items():
        if fault := _moments_fault(moments[number], parameter):
            raise InputError(f"{source}: optimizer.state[{number}]{fault}: {WEIGHTS_ALONE}")
        loaded[number] = _copy_moments(moments[number], parameter)
    optimizer.load_state_dict({"state": loaded, "param_groups": own})


def _numbers(groups: object) -> list[Any]:
    """The numbers of the parameters in an optimiser's groups, for what groups of a file can be."""
    if not isinstance(groups, list | tuple):
        return [None]
    return [group.get("params") if isinstance(group, Mapping) else None for group in groups]


def _moments_fault(moments: object, parameter: Tensor) -> str | None:
    """What keeps a value from a file from being AdamW's state of a parameter."""
    if not isinstance(moments, Mapping):
        return f" is {shown(moments)}, not moments"
    if moments.keys() != _MOMENTS:
        return f" holds {', '.join(map(shown, list(moments)[:4])) or 'nothing'}, not {', '.join(sorted(_MOMENTS))}"
    step = moments["step"]
    if isinstance(step, Tensor):
        if fault := tensor_fault(step, (), least=0.0):
            return f".step {fault}"
    elif type(step) not in (int, float) or not 0 <= step < math.inf:
        return f".step is {shown(step)}, not a number of updates"
    for name, least in (("exp_avg", -math.inf), ("exp_avg_sq", 0.0)):
        if fault := tensor_fault(moments[name], parameter.shape, least):
            return f".{name} {fault}"
    return None


def _copy_moments(moments: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """The state of a parameter in memory of its own, laid out like the parameter."""
    copies = {name: torch.empty_like(parameter).copy_(moments[name]) for name in ("exp_avg", "exp_avg_sq")}
    return copies | {"step": torch.tensor(float(moments["step"]), dtype=torch.float32)}


def clip_and_step(
    optimizer: torch.optim.AdamW, parameters: Iterable[Tensor], lr: float, cfg: OptimConfig
) -> tuple[Float[Tensor, ""], Bool[Tensor, ""]]:
    """Clip gradients and update, unless their norm is not finite or beyond clip norm times allowed factor.

    Gradients are averaged over ranks before, so every rank decides the same. The decision stays on the device: the
    fused kernel is told to leave parameters and moments alone, so no rank waits for the host.

    Returns:
        The gradient norm before clipping, and whether the update was skipped.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip_norm)
    skipped = ~(norm <= cfg.grad_clip_norm * cfg.allowed_gradnorm_factor)
    for group in optimizer.param_groups:
        group["lr"] = lr
    # The contract between torch's fused optimisers and gradient scalers: a non-zero found_inf makes step() do nothing.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, skipped
