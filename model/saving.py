"""Which activations a checkpointed group of layers saves for backward; the others are computed again."""

import functools
import math
from enum import IntEnum
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from model.attention_kernel import OPERATORS
from model.mlp_kernel import MATMULS

_ATEN = torch.ops.aten
_ATTENTION_OPS = OPERATORS | {
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}
# Means and variances of the tokens, where they are results of their own: small, and saved always.
_STATISTICS = _ATEN.var_mean.correction
# Memory of what a block may save, in outputs of one token: attention, then the matmuls (3 for q k v, 1 behind
# attention, 4 in the MLP).
_ATTENTION_UNITS = 1
_MATMUL_UNITS = 8


class SavePolicy(IntEnum):
    """What a checkpointed group of layers saves for backward besides its input; each policy saves more."""

    NOTHING = 0
    ATTENTION = 1
    MATMULS = 2


def plan_saving(num_groups: int, share: float) -> list[SavePolicy]:
    """The policy of each group of layers, so that together they save about `share` of all that is worth saving.

    Attention comes first: it costs most for its memory. The last groups save most, since they are the first that
    backward frees.
    """
    units = share * num_groups * (_ATTENTION_UNITS + _MATMUL_UNITS) + 1e-6
    attention = min(num_groups, math.floor(units / _ATTENTION_UNITS))
    matmuls = min(num_groups, max(0, math.floor((units - attention * _ATTENTION_UNITS) / _MATMUL_UNITS)))
    policies = [SavePolicy.NOTHING] * (num_groups - attention) + [SavePolicy.ATTENTION] * attention
    return policies[: num_groups - matmuls] + [SavePolicy.MATMULS] * matmuls


def checkpoint_arguments(policy: SavePolicy) -> dict[str, Any]:
    """Arguments of torch's `checkpoint` for a policy; only compiled code has statistics to save."""
    if policy == SavePolicy.NOTHING and not torch.compiler.is_compiling():
        return {}
    return {"context_fn": _CONTEXTS[policy]}


def _decide(policy: SavePolicy, _context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Save statistics, and by policy attention and matmuls; not a block's last matmul, which backward never reads.

    Of a matmul with GELU inside backward reads one result of two; only compiled code saves that one alone.
    """
    saved = op is _STATISTICS or (policy >= SavePolicy.ATTENTION and op in _ATTENTION_OPS)
    if policy >= SavePolicy.MATMULS and op is _ATEN.mm.default:
        saved = args[0].shape[1] <= args[1].shape[1]
    if policy >= SavePolicy.MATMULS and op in MATMULS and torch.compiler.is_compiling():
        saved = True
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


_CONTEXTS = {
    policy: functools.partial(create_selective_checkpoint_contexts, functools.partial(_decide, policy))
    for policy in SavePolicy
}
