"""Weights from one form of file to the other: checkpoints and published `.pt` files, and safetensors.

    python -m model.convert IN OUT [--dtype bfloat16] [--weights trained]

IN is a file of weights, a folder whose newest checkpoint is meant, or hf://OWNER/REPOSITORY/FILE. OUT ends in
`.safetensors` or `.pt`. It keeps weights under their published names, what they compute and the configuration of their
training; the state of a training run stays behind. Numbers become float16 in a `.safetensors` and float32 in a `.pt`,
unless `--dtype` says otherwise. Of a checkpoint that holds an average of its weights, the average is kept, unless
`--weights` says otherwise.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from model import VARIANTS, build_model
from model.function import Function, stored_function, with_function
from model.lvsm import LVSM, ModelConfig
from model.tokens import TokenizerConfig
from model.transformer import TransformerConfig
from model.weights import fitting_state, read_sizes, without_wrappers
from utils.checkpoint import WeightsChoice, choose_weights, find_checkpoint, read_checkpoint, write_weights
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.hub import is_hub_address
from utils.tensors import tensor_fault
from utils.text import counted, printable

log = logging.getLogger("lvsm")

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# What numbers become if nobody says it, by the suffix of the file: of 16 bits float16 is the finer.
_USUAL = {".safetensors": "float16", ".pt": "float32"}


def portable(content: Mapping[str, Any], source: object, dtype: torch.dtype) -> dict[str, Any]:
    """What a file of weights alone keeps of a checkpoint's content: "model" as `dtype`, "function", "config".

    Raises:
        InputError: the weights are of no known variant, are not just what a model has, or not finite as `dtype`.
    """
    state = without_wrappers(content["model"], source)
    function = stored_function({**content, "model": state}, source)
    if function is None:
        raise InputError(f"{source} holds weights of no known variant ({', '.join(VARIANTS)}): name a file of theirs")
    fitting = fitting_state(_build_empty(state, function, source), state, source)
    weights = {name: _cast(value, name, source, dtype) for name, value in fitting.items()}
    kept = {name: content[name] for name in ("config",) if name in content}
    return {"model": weights, "function": asdict(function), **kept}


def _build_empty(state: Mapping[str, Any], function: Function, source: object) -> LVSM:
    """The model that weights under published names are of, as far as their sizes say it, without numbers."""
    try:
        with torch.device("meta"):
            return build_model(_read_config(state, function)).to_empty(device="cpu")
    except InputError as error:
        raise InputError(f"{source} is of no model that can be built: {error}") from None


def _read_config(state: Mapping[str, Any], function: Function) -> ModelConfig:
    """The configuration of the model: other sizes than those that the weights say do not matter."""
    sizes: dict[str, Any] = {name: value for name, value in read_sizes(state).items() if name != "class_name"}
    patch = sizes.pop("patch_size", TokenizerConfig.patch_size)
    cfg = ModelConfig(
        function.variant,
        TokenizerConfig(image_size=patch, patch_size=patch),
        TokenizerConfig(image_size=patch, patch_size=patch, in_channels=6),
        TransformerConfig(**sizes),
    )
    return with_function(cfg, function)


def _cast(value: Tensor, name: str, source: object, dtype: torch.dtype) -> Tensor:
    cast = value.to(dtype)
    if fault := tensor_fault(cast):
        others = ", ".join(known for known, one in DTYPES.items() if one != dtype)
        raise InputError(f"{source}: {name} {fault} as {str(dtype).removeprefix('torch.')}: choose --dtype {others}")
    return cast


def main(argv: Sequence[str]) -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m model.convert", description=main.__doc__)
    add = parser.add_argument
    add("source", metavar="IN", type=_weights_argument, help="a file of weights, a folder of checkpoints, hf://...")
    add("target", metavar="OUT", type=path_argument, help="a file, .safetensors or .pt")
    add("--dtype", choices=DTYPES, help="float16 in a .safetensors, float32 in a .pt, if not given")
    weights = get_args(WeightsChoice)
    add("--weights", choices=weights, default="auto", help="as trained, or their average; auto: that, if IN holds it")
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    given = parser.parse_args(argv)
    target = given.target
    _check_target(target, given.overwrite)
    source = find_checkpoint(given.source, "IN")
    dtype = given.dtype or _USUAL[target.suffix]
    content, _ = choose_weights(read_checkpoint(source), given.weights, source, "--weights")
    kept = portable(content, source, DTYPES[dtype])
    write_weights(target, kept)
    count = sum(value.numel() for value in kept["model"].values())
    log.info("%s: %s as %s, %s", target, counted(count, "number"), dtype, counted(target.stat().st_size, "byte"))


def _weights_argument(text: str) -> str | Path:
    return text if is_hub_address(text) else path_argument(text)


def _check_target(target: Path, overwrite: bool) -> None:
    """Raises InputError for a file of no known form, or one that would be lost."""
    if target.suffix not in _USUAL:
        raise InputError(f"OUT is {printable(str(target))}: let it end in {' or '.join(_USUAL)}")
    if target.exists() and not overwrite:
        raise InputError(f"OUT is there already: {printable(str(target))}: choose another name, or give --overwrite")


if __name__ == "__main__":
    run_main(main)
