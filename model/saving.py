"""Which activations a group of layers saves for backward; the others are computed again."""

import functools
import math
from enum import IntEnum
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from model.attention_kernel import OPERATORS
from model.mlp_kernel import MATMULS
from model.normed_attention import NORMED

_ATEN = torch.ops.aten
_ATTENTION_OPS = OPERATORS | {
    NORMED,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}
# Means and variances of the tokens, where they are results of their own: small, and saved always.
_STATISTICS = _ATEN.var_mean.correction
# Heads after their norms and turns by cameras (model.prope_kernel, which is imported where it can run).
_TURN = "lvsm::turn_heads"
# Memory of what a block may save, in outputs of one token: attention, then the matmuls (3 for q k v, 1 behind
# attention, 4 in the MLP). Where cameras turn heads, these come with the matmuls and are 4 more.
_ATTENTION_UNITS = 1
_MATMUL_UNITS = 8


class SavePolicy(IntEnum):
    """What a group of layers saves for backward besides its input; each policy saves more.

    With `EVERYTHING` a group is not checkpointed, and own kernels save results that backward would compute once more
    (`save_everything` of attention and MLP).
    """

    NOTHING = 0
    ATTENTION = 1
    MATMULS = 2
    EVERYTHING = 3


def plan_saving(num_groups: int, share: float) -> list[SavePolicy]:
    """The policy of each group of layers, so that together they save about `share` of all that is worth saving.

    Attention comes first: it costs most for its memory. The last groups save most, since they are the first that
    backward frees. A share from 1 to 2 has a part of the groups save everything: 1.5 half of them.
    """
    units = share * num_groups * (_ATTENTION_UNITS + _MATMUL_UNITS) + 1e-6
    attention = min(num_groups, math.floor(units / _ATTENTION_UNITS))
    matmuls = min(num_groups, max(0, math.floor((units - attention * _ATTENTION_UNITS) / _MATMUL_UNITS)))
    policies = [SavePolicy.NOTHING] * (num_groups - attention) + [SavePolicy.ATTENTION] * attention
    policies = policies[: num_groups - matmuls] + [SavePolicy.MATMULS] * matmuls
    everything = math.floor(max(0, share - 1) * num_groups + 1e-6)
    return policies[: num_groups - everything] + [SavePolicy.EVERYTHING] * everything


def checkpoint_arguments(policy: SavePolicy) -> dict[str, Any]:
    """Arguments of torch's `checkpoint` for a policy; only compiled code has statistics to save."""
    # Asked here: in `_decide` some versions of torch answer no, though they compile.
    compiled = torch.compiler.is_compiling()
    if policy == SavePolicy.NOTHING and not compiled:
        return {}
    return {"context_fn": _COMPILED[policy] if compiled else _PLAIN[policy]}


def _decide(policy: SavePolicy, compiled: bool, _context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Save statistics, and by policy attention, matmuls and what turns heads by cameras.

    Not a block's last matmul, which backward never reads. Of a matmul with GELU inside backward reads one result of
    two; only compiled code saves that one alone.
    """
    saved = op is _STATISTICS or (policy >= SavePolicy.ATTENTION and op in _ATTENTION_OPS)
    if policy >= SavePolicy.MATMULS:
        if op is _ATEN.mm.default:
            saved = args[0].shape[1] <= args[1].shape[1]
        elif op in MATMULS:
            saved = compiled
        else:
            saved = saved or op.name() == _TURN
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(compiled: bool) -> dict[SavePolicy, Any]:
    decisions = {policy: functools.partial(_decide, policy, compiled) for policy in SavePolicy}
    return {policy: functools.partial(create_selective_checkpoint_contexts, decisions[policy]) for policy in decisions}


_PLAIN = _contexts(compiled=False)
_COMPILED = _contexts(compiled=True)
