"""What weights compute beyond what their names and shapes say, and whether a model may compute it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from model import VARIANTS
from model.lvsm import LVSM, ModelConfig
from model.tokens import RAYS, Rays
from model.transformer import CameraEncoding
from model.weights import find_variants, load_published
from utils.errors import InputError, MisfitError
from utils.text import shown

log = logging.getLogger("lvsm")

# What a configuration calls the parts of a function, and what they may be.
_KEYS = {"variant": "class_name", "camera_encoding": "transformer.camera_encoding", "rays": "rays"}
_KNOWN = {"variant": tuple(VARIANTS), "camera_encoding": get_args(CameraEncoding), "rays": tuple(RAYS)}


@dataclass(frozen=True)
class Function:
    """The variant by its short name, and how cameras come in."""

    variant: str
    camera_encoding: CameraEncoding = "none"
    rays: Rays = "plucker"

    def differences(self, other: "Function") -> dict[str, tuple[str, str]]:
        """What differs: the part's name, ours, the other's."""
        theirs = asdict(other)
        return {name: (ours, theirs[name]) for name, ours in asdict(self).items() if ours != theirs[name]}


def function_of(model: LVSM) -> Function:
    """What a model computes."""
    variant = next(name for name, variant in VARIANTS.items() if variant is type(model))
    return Function(variant, model.camera_encoding, model.rays)


def with_function(cfg: ModelConfig, function: Function) -> ModelConfig:
    """The configuration that asks for just this function."""
    transformer = replace(cfg.transformer, camera_encoding=function.camera_encoding)
    return replace(cfg, transformer=transformer, rays=function.rays)


def stored_function(content: Mapping[str, Any], source: object) -> Function | None:
    """What the weights in a checkpoint's content were trained to compute; None if they are of no known variant.

    A checkpoint that does not say it, such as a published one, is faithful to the paper.

    Raises:
        InputError: it says what cannot be.
    """
    if "function" not in content:
        variants = find_variants(content["model"])
        return Function(min(variants)) if variants else None
    stored = content["function"]
    if not isinstance(stored, Mapping) or stored.keys() != _KNOWN.keys():
        raise InputError(f"{source}: function is {shown(stored)}, not {', '.join(_KNOWN)}: its file is damaged")
    for name, known in _KNOWN.items():
        if stored[name] not in known:
            raise InputError(f"{source}: function.{name} is {shown(stored[name])}; known: {', '.join(known)}")
    return Function(**stored)


def load_weights(model: LVSM, content: Mapping[str, Any], source: object, allow_other: bool = False) -> None:
    """Load the weights of a checkpoint's content, and have the model compute what they were trained to.

    Args:
        allow_other: the model may compute something else than they were trained to; a warning says what.

    Raises:
        InputError: the weights are broken.
        MisfitError: they are of another model, or the model's configuration asks for another function.
    """
    load_published(model, content["model"], source)
    stored = stored_function(content, source)
    if stored is None:
        return
    _adopt(model, stored)
    different = function_of(model).differences(stored)
    if not different:
        return
    trained = " and ".join(f"model.{_KEYS[name]}={theirs}" for name, (_, theirs) in different.items())
    here = " and ".join(ours for ours, _ in different.values())
    if not allow_other:
        raise MisfitError(
            f"{source} was trained with {trained}, but here it is {here}: the same weights would compute something "
            "else. Change the key, or set training.allow_other_function=true to go on all the same"
        )
    log.warning("%s was trained with %s: with %s the same weights compute something else", source, trained, here)


def _adopt(model: LVSM, stored: Function) -> None:
    """Have the model compute what was stored where its configuration leaves it open."""
    if model.cfg.transformer.camera_encoding == "auto":
        model.camera_encoding = stored.camera_encoding
    if model.cfg.rays == "auto":
        model.see(stored.rays)
