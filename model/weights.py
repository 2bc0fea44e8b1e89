"""Published checkpoint names and ours, matched strictly in both directions."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.lvsm import LVSM, EncoderDecoder
from utils.errors import InputError, MisfitError
from utils.tensors import plain_fault, tensor_fault
from utils.text import printable, shown

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
# Checkpoints of other trainers carry the loss network along; wrappers put their own parts into names.
_IGNORED = re.compile(r"^loss_computer\.")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+")
_SHOWN = 4

# What the names and shapes of published weights say of the model.
_FIRST_STACKS = {"decoder-only": "transformer_blocks.", "encoder-decoder": "transformer_encoder."}
_STACKS = {
    "n_layer": "transformer_blocks",
    "encoder_n_layer": "transformer_encoder",
    "decoder_n_layer": "transformer_decoder",
}
_D_NORMS = re.compile(r"^transformer_input_layernorm|\.norm1\.weight$")
# Tensors that hold whole patches: along which axis, with how many channels.
_ENDS = (
    ("image_tokenizer.1.weight", 1, 9),
    ("target_pose_tokenizer.1.weight", 1, 6),
    ("image_token_decoder.1.weight", 0, 3),
)
_SECTIONS = {"patch_size": "model.image_tokenizer"}
_UNITS = {
    "d": "channels",
    "d_head": "channels a head",
    "patch_size": "pixels a patch side",
    "n_latent_vectors": "latents",
    **dict.fromkeys(_STACKS, "layers"),
}


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
        state: published names -> tensors; `loss_computer.*` is ignored, what wrappers put into names is taken out.
        source: where the weights come from, for error messages.

    Raises:
        InputError: names the tensor that is not plain, finite numbers. The model is unchanged.
        MisfitError: names the sizes that differ, with both numbers; where they agree, the keys that are missing,
            unknown or of the wrong shape. The model is unchanged.
    """
    given = _without_wrappers(state, source)
    own = published_state(model)
    for name in sorted(own.keys() & given.keys()):
        if fault := plain_fault(given[name]):
            raise InputError(f"{source}: {name} {fault}")
    problems = _disagreements(own, given) or _mismatches(own, given)
    if problems:
        raise MisfitError(f"{source} does not fit this model: {'; '.join(problems)}")
    for name, value in given.items():
        # As the model will have them, since a number may fit into the file's type alone.
        if fault := tensor_fault(value.to(own[name].dtype)):
            raise InputError(f"{source}: {name} {fault}: its training diverged, take an earlier checkpoint")
    model.load_state_dict({name: given[published] for name, published in published_names(model).items()})


def _without_wrappers(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The weights under the names that they have in the bare model."""
    given: dict[str, Any] = {}
    for full, value in state.items():
        name = _WRAPPERS.sub("", str(full))
        if _IGNORED.match(name):
            continue
        if name in given:
            raise InputError(f"{source} holds {shown(name)} twice, once under {shown(str(full))}")
        given[name] = value
    return given


def read_sizes(state: Mapping[str, Any]) -> dict[str, int | bool | str]:
    """What weights under published names say of their model: `class_name` (the variant) and sizes by their key.

    A size is left out where the tensors do not say it, or contradict one another.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items() if plain_fault(value) is None}
    variants = {variant for variant, stack in _FIRST_STACKS.items() if any(name.startswith(stack) for name in shapes)}
    norms = {shape[-1] for name, shape in shapes.items() if _D_NORMS.search(name)}
    heads = {shape[-1] for name, shape in shapes.items() if name.endswith("attn.q_norm.weight")}
    blocks = any(name.endswith("attn.fc.weight") for name in shapes)
    latents = shapes.get("n_light_field_latent")
    found: dict[str, set[Any]] = {
        "class_name": variants,
        "d": norms,
        **{key: _count_layers(shapes, stack) for key, stack in _STACKS.items()},
        "n_latent_vectors": {latents[0]} if latents else set(),
        "patch_size": {_patch_size(shapes, *ends) for ends in _ENDS},
        "use_qk_norm": {bool(heads)} if blocks else set(),
        "d_head": heads,
    }
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1 and None not in values}


def _count_layers(shapes: Mapping[str, Any], stack: str) -> set[int]:
    numbers = [int(name.split(".")[1]) for name in shapes if re.match(rf"{stack}\.\d+\.", name)]
    return {max(numbers) + 1} if numbers else set()


def _patch_size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, channels: int) -> int | None:
    """The side of a patch, from the `channels` of its pixels along one axis of a tokenizer or the head."""
    size = shapes[name][axis] if len(shapes.get(name, ())) == 2 else 0
    side = math.isqrt(size // channels)
    return side if side and side * side * channels == size else None


def _disagreements(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """The sizes in which weights differ from the model; of another variant, that alone."""
    mine, theirs = read_sizes(own), read_sizes(given)
    variant = theirs.get("class_name")
    if variant and variant != mine["class_name"]:
        return [f"These are weights of the {variant} variant: set model.class_name or use its config"]
    return [
        f"{key}: the weights have {_phrase(key, theirs[key])}, "
        f"{_SECTIONS.get(key, 'model.transformer')}.{key} is {value}"
        for key, value in mine.items()
        if key in theirs and theirs[key] != value
    ]


def _phrase(key: str, value: object) -> str:
    if key == "use_qk_norm":
        return "query and key norms" if value else "no query and key norms"
    return f"{value} {_UNITS[key]}"


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
    return ", ".join(printable(item, 120) for item in items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
