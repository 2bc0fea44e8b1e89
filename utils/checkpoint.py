"""Checkpoint files: which one is meant, reading without executing anything, writing whole or not at all."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.files import atomic_path

_NUMBERED = re.compile(r"ckpt_(\d+)\.pt")


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after `step` updates."""
    return f"ckpt_{step:016}.pt"


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    numbered = [(match, path) for path in folder.glob("ckpt_*.pt") if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, key=lambda pair: int(pair[0][1]))]


def find_checkpoint(path: Path, key: str) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a folder.

    A folder without numbered checkpoints may hold a single `.pt` file, such as a published one. `key` is the
    configuration key that named the path, for messages.

    Raises:
        InputError: there is none, or the folder holds several and none is numbered.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path} ({key} names a file or a folder of ckpt_*.pt)")
    found = numbered_checkpoints(path) or sorted(path.glob("[!.]*.pt"))
    if not found:
        raise InputError(f"no checkpoint (*.pt) in the folder {path} ({key})")
    if len(found) > 1 and not _NUMBERED.fullmatch(found[-1].name):
        names = ", ".join(file.name for file in found)
        raise InputError(f"several checkpoints in {path} ({names}): name one as {key}")
    return found[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; only tensors and plain values are accepted.

    Raises:
        InputError: the file is missing, truncated or not a checkpoint with "model" in it.
    """
    try:
        # Mapping reads only what is used, and works for all but files of very old releases.
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise InputError(f"checkpoint not found: {path}") from None
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
        raise InputError(f"checkpoint cannot be read (truncated?): {path}: {reason}") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), Mapping):
        raise InputError(f'not a checkpoint: {path}: it holds no "model"')
    return state


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `folder/ckpt_{step:016}.pt`.

    Raises:
        OSError: the disk is full or not writable; the folder is then as it was.
    """
    path = folder / checkpoint_name(step)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(state), file)
    return path
