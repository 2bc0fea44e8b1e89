"""Published checkpoint names and ours, matched strictly in both directions."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model import VARIANTS
from model.lvsm import LVSM
from utils.errors import InputError, MisfitError
from utils.tensors import plain_fault, tensor_fault
from utils.text import counted, printable, shown

_SHARED = {
    r"^image_tokenizer\.linear\.": "image_tokenizer.1.",
    r"^pose_tokenizer\.linear\.": "target_pose_tokenizer.1.",
    r"^head\.norm\.": "image_token_decoder.0.",
    r"^head\.linear\.": "image_token_decoder.1.",
    r"\.attn\.qkv\.": ".attn.to_qkv.",
    r"\.attn\.out\.": ".attn.fc.",
    r"\.mlp\.up\.": ".mlp.mlp.0.",
    r"\.mlp\.down\.": ".mlp.mlp.2.",
}
# Checkpoints of other trainers carry the loss network along; wrappers put their own parts into names.
_IGNORED = re.compile(r"^loss_computer\.")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+")
_SHOWN = 4

# What the names and shapes of published weights say of the model.
_D_NORMS = re.compile(r"^transformer_input_layernorm|\.norm1\.weight$")
# Tensors that hold whole patches: along which axis, with how many channels.
_ENDS = (
    ("image_tokenizer.1.weight", 1, 9),
    ("target_pose_tokenizer.1.weight", 1, 6),
    ("image_token_decoder.1.weight", 0, 3),
)
_SECTIONS = {"patch_size": "model.image_tokenizer"}
_UNITS = {
    "d": "channel",
    "d_head": "channel",
    "patch_size": "pixel",
    "n_latent_vectors": "latent",
}


def published_names(model: LVSM) -> dict[str, str]:
    """Our parameter name -> the published one, for every parameter of `model`."""
    return {name: _rename(name, type(model)) for name in model.state_dict()}


def _rename(name: str, variant: type[LVSM]) -> str:
    for pattern, replacement in _SHARED.items():
        name = re.sub(pattern, replacement, name)
    part, dot, rest = name.partition(".")
    return variant.published_parts.get(part, part) + dot + rest


def published_state(model: LVSM) -> dict[str, Tensor]:
    """The model's weights under published names."""
    state = model.state_dict()
    return {published: state[name] for name, published in published_names(model).items()}


def load_published(model: LVSM, state: Mapping[str, Any], source: object) -> None:
    """Load weights stored under published names into `model`; nothing may be missing, unknown or misshapen.

    Args and errors are those of `fitting_state`; where it raises, the model is unchanged.
    """
    given = fitting_state(model, state, source)
    model.load_state_dict({name: given[published] for name, published in published_names(model).items()})


def fitting_state(model: LVSM, state: Mapping[str, Any], source: object) -> dict[str, Tensor]:
    """The weights in `state`, under the published names of `model`, if they are all that it has.

    Args:
        state: published names -> tensors; `loss_computer.*` is ignored, what wrappers put into names is taken out.
        source: where the weights come from, for error messages.

    Raises:
        InputError: names the tensor that is not plain, finite numbers.
        MisfitError: names the sizes that differ, with both numbers; where they agree, the keys that are missing,
            unknown or of the wrong shape.
    """
    given = without_wrappers(state, source)
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
    return given


def without_wrappers(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Weights under the names that they have in the bare model; `loss_computer.*` is left out.

    Raises:
        InputError: a name stands there twice.
    """
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
    norms = {shape[-1] for name, shape in shapes.items() if _D_NORMS.search(name)}
    heads = {shape[-1] for name, shape in shapes.items() if name.endswith("attn.q_norm.weight")}
    blocks = any(name.endswith("attn.fc.weight") for name in shapes)
    found: dict[str, set[Any]] = {
        "class_name": find_variants(state),
        "d": norms,
        **_read_lengths(shapes),
        "patch_size": {_patch_size(shapes, *ends) for ends in _ENDS},
        "use_qk_norm": {bool(heads)} if blocks else set(),
        "d_head": heads,
    }
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1 and None not in values}


def find_variants(state: Mapping[str, Any]) -> set[str]:
    """The variants that have the first of their named parts among weights under published names.

    Of several with the same names, only the first of the table.
    """
    parts = {name.partition(".")[0] for name, value in state.items() if plain_fault(value) is None}
    owners: dict[str, str] = {}
    for name, variant in VARIANTS.items():
        first = next(iter(variant.lengths.values()), "")
        owners.setdefault(variant.published_parts.get(first, first), name)
    return {name for part, name in owners.items() if part in parts}


def _read_lengths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """The lengths of all variants' parts, by their key."""
    found: dict[str, set[int]] = {}
    for variant in VARIANTS.values():
        for key, part in variant.lengths.items():
            found.setdefault(key, set()).update(_length(shapes, variant.published_parts.get(part, part)))
    return found


def _length(shapes: Mapping[str, tuple[int, ...]], part: str) -> set[int]:
    """The rows of a tensor, or the layers of a stack; empty if there is neither."""
    if shapes.get(part):
        return {shapes[part][0]}
    numbers = [int(name.split(".")[1]) for name in shapes if re.match(rf"{part}\.\d+\.", name)]
    return {max(numbers) + 1} if numbers else set()


def _patch_size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, channels: int) -> int | None:
    """The side of a patch, from the `channels` of its pixels along one axis of a tokenizer or the head."""
    size = shapes[name][axis] if len(shapes.get(name, ())) == 2 else 0
    side = math.isqrt(size // channels)
    return side if side and side * side * channels == size else None


def _disagreements(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """The sizes in which weights differ from the model; of another variant, that alone."""
    variants = find_variants(given)
    if variants and not variants & find_variants(own):
        other = min(variants)
        return [f"These are weights of the {other} variant: set model.class_name={other} or use its config"]
    mine = read_sizes(own)
    theirs = read_sizes(given)
    return [
        f"{key}: the weights have {_phrase(key, theirs[key])}, "
        f"{_SECTIONS.get(key, 'model.transformer')}.{key} is {value}"
        for key, value in mine.items()
        if key != "class_name" and key in theirs and theirs[key] != value
    ]


def _phrase(key: str, value: Any) -> str:
    if key == "use_qk_norm":
        return "query and key norms" if value else "no query and key norms"
    return counted(value, _UNITS.get(key, "layer"))


def _mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys())
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
