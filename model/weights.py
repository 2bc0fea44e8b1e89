"""Published checkpoint names and ours, matched strictly in both directions."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.lvsm import LVSM, EncoderDecoder
from utils.errors import InputError

_SHARED = {
    r"^image_tokenizer\.": "image_tokenizer.1.",
    r"^pose_tokenizer\.": "target_pose_tokenizer.1.",
    r"^head_norm\.": "image_token_decoder.0.",
    r"^head\.": "image_token_decoder.1.",
    r"\.attn\.qkv\.": ".attn.to_qkv.",
    r"\.attn\.out\.": ".attn.fc.",
    r"\.mlp\.up\.": ".mlp.mlp.0.",
    r"\.mlp\.down\.": ".mlp.mlp.2.",
}
_DECODER_ONLY = {
    r"^input_norm\.": "transformer_input_layernorm.",
    r"^transformer\.": "transformer_blocks.",
}
_ENCODER_DECODER = {
    r"^input_norm\.": "transformer_input_layernorm_decoder.",
    r"^encoder\.": "transformer_encoder.",
    r"^decoder\.": "transformer_decoder.",
    r"^latents$": "n_light_field_latent",
}
# Checkpoints of other trainers carry the loss network along; wrappers prefix every name.
_IGNORED = re.compile(r"^loss_computer\.")
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_SHOWN = 4


def published_names(model: LVSM) -> dict[str, str]:
    """Our parameter name -> the published one, for every parameter of `model`."""
    table = _SHARED | (_ENCODER_DECODER if isinstance(model, EncoderDecoder) else _DECODER_ONLY)
    return {name: _rename(name, table) for name in model.state_dict()}


def _rename(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def published_state(model: LVSM) -> dict[str, Tensor]:
    """The model's weights under published names."""
    state = model.state_dict()
    return {published: state[name] for name, published in published_names(model).items()}


def load_published(model: LVSM, state: Mapping[str, Any], source: object) -> None:
    """Load weights stored under published names into `model`; nothing may be missing, unknown or misshapen.

    Args:
        state: published names -> tensors; `loss_computer.*` is ignored, a `module.` prefix stripped.
        source: where the weights come from, for error messages.

    Raises:
        InputError: names the keys that are missing, unknown or of the wrong shape. The model is unchanged.
    """
    stripped = {_WRAPPERS.sub("", str(name)): value for name, value in state.items()}
    given = {name: value for name, value in stripped.items() if not _IGNORED.match(name)}
    names, own = published_names(model), model.state_dict()
    problems = _mismatches({published: own[name] for name, published in names.items()}, given)
    if problems:
        raise InputError(f"{source} does not fit this model: {'; '.join(problems)}{_hint(model, given)}")
    model.load_state_dict({name: given[published] for name, published in names.items()})


def _mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [
        f"{name} is {_shape(given[name])}, expected {_shape(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if _shape(given[name]) != _shape(expected[name])
    ]
    groups = [("missing", missing), ("unknown", unknown), ("misshapen", shapes)]
    return [f"{len(items)} {what} ({_some(items)})" for what, items in groups if items]


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")


def _hint(model: LVSM, given: Mapping[str, Any]) -> str:
    other = "decoder-only" if isinstance(model, EncoderDecoder) else "encoder-decoder"
    sign = "transformer_blocks." if other == "decoder-only" else "transformer_encoder."
    if any(name.startswith(sign) for name in given):
        return f". These are weights of the {other} variant: set model.class_name or use its config"
    return ""
